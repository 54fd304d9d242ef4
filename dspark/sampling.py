"""From logits to the law that a request samples from, and one draw from a law."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dspark.grammar import possible_tokens
from dspark.request import DecodingRequest
from dspark.token_counts import TokenCounts
from dspark.transfer import to_device


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """Invert the cumulative law: the first token whose cumulative probability exceeds the uniform.

    Args:
        probs: `[B, V]`, non-negative, not necessarily normalised.
        uniform: `[B]` float64 in [0, 1).

    Returns:
        Token ids `[B]`; never one of probability 0, at no uniform and with no rounding. A pure function.

    """
    mass = probs.double()
    # A parallel prefix sum may move by an ulp where nothing was added; such a token must not be hit, so its edge is 0.
    edges = mass.cumsum(-1).masked_fill(mass == 0, 0.0)  # [B, V]
    # Dividing by the largest edge puts 1 at the last possible token: no uniform below 1 falls behind it.
    edges = edges / edges.amax(-1, keepdim=True)
    return (uniform.unsqueeze(-1) < edges).byte().argmax(-1)


@dataclass(frozen=True, slots=True)
class History:
    """What the processors need to know about prompt and output of each row, at the start of a round.

    `num_output_tokens[b]` tokens have been emitted. `in_text` `[B, V]` marks tokens of prompt or output, `output_counts`
    `[B, V]` counts those of the output and `outputs` are the tokens themselves; None where no row needs them.
    """

    num_output_tokens: tuple[int, ...]
    in_text: Tensor | None
    output_counts: Tensor | None
    outputs: tuple[Sequence[int], ...] | None = None


class Processors:
    """The logits processors of a batch of requests, each row with its own settings.

    A processor that no row uses costs nothing; that is decided from the requests, on the host. A row that does not use
    a processor passes it bit by bit, so a request has the same law alone and in any batch.
    """

    def __init__(
        self, requests: Sequence[DecodingRequest], *, vocab_size: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.requests = list(requests)
        self.vocab_size = vocab_size
        self.device = device
        self.dtype = dtype
        settings = [request.sampling for request in requests]
        self._greedy = [each.temperature == 0 for each in settings]
        self._all_greedy = all(self._greedy)
        self._is_greedy = self._column(self._greedy, torch.bool) if any(self._greedy) else None
        self._temperature = self._used([each.temperature or 1.0 for each in settings], 1.0)
        self._repetition = self._used([each.repetition_penalty for each in settings], 1.0)
        self._presence = self._used([each.presence_penalty for each in settings], 0.0)
        self._frequency = self._used([each.frequency_penalty for each in settings], 0.0)
        self._min_p = self._used([each.min_p for each in settings], 0.0)
        # Off is a bound that no rounding of a cumulative sum reaches.
        self._top_p = self._used([each.top_p if each.top_p < 1 else 2.0 for each in settings], 2.0)
        top_k = [min(each.top_k, vocab_size) if each.top_k else vocab_size for each in settings]
        self._largest_k = max(top_k)
        self._top_k = self._column(top_k, torch.long) if min(top_k) < vocab_size else None
        self._bias = self._bias_table()
        self._banned = self._banned_table()
        self._stops = self._stop_table()
        self._has_grammar = any(each.grammar is not None for each in settings)
        self._text_counts, self._output_counts = (
            TokenCounts(vocab_size=vocab_size, device=device, dtype=dtype) for _ in range(2)
        )

    def of(self, requests: Sequence[DecodingRequest]) -> "Processors":
        """The processors of other requests to the same model."""
        return Processors(requests, vocab_size=self.vocab_size, device=self.device, dtype=self.dtype)

    def history(self, token_ids: Sequence[Sequence[int]]) -> History:
        """Read the history off each row's prompt and output."""
        prompt_lengths = [len(request.prompt_token_ids) for request in self.requests]
        outputs = tuple(ids[skip:] for ids, skip in zip(token_ids, prompt_lengths, strict=True))
        in_text = counts = None
        if self._repetition is not None:
            in_text = self._text_counts.of(token_ids) > 0
        if self._presence is not None or self._frequency is not None:
            counts = self._output_counts.of(outputs)
        return History(tuple(map(len, outputs)), in_text, counts, outputs if self._has_grammar else None)

    def probs(self, logits: Tensor, history: History, draft_token_ids: Tensor, *, start: int = 0) -> Tensor:
        """The laws of T positions in a block, each given its own true history.

        Args:
            logits: `[B, T, V]`; row t is the model's row after the text and the first `start + t` drafts.
            history: of the text before the block.
            draft_token_ids: `[B, >= start + T - 1]`.
            start: position of the first row in the block.

        Returns:
            `[B, T, V]` in this object's dtype; a row whose logits hold NaN or +inf, or nothing possible, is NaN.

        """
        return self.law(self.scores(logits, history, draft_token_ids, start=start))

    def scores(self, logits: Tensor, history: History, draft_token_ids: Tensor, *, start: int = 0) -> Tensor:
        """Logits after every processor except temperature and truncation; arguments as in `probs`."""
        scores = logits.to(self.dtype)
        scores = self._penalised(scores, history, draft_token_ids, start)
        if self._banned is not None:
            scores = scores.masked_fill(self._banned, -torch.inf)
        if history.outputs is not None:
            ungrammatical = self._ungrammatical(history.outputs, draft_token_ids, start, scores.shape[1])
            scores = scores.masked_fill(ungrammatical, -torch.inf)
        return self._without_early_stop(scores, history, start)

    def law(self, scores: Tensor) -> Tensor:
        """The law that each row draws from, `[B, T, V]`; all mass on the best score in greedy rows."""
        if self._all_greedy:
            return one_hot_of_best(scores)
        law = self.sampled_law(scores)
        return law if self._is_greedy is None else torch.where(self._is_greedy, one_hot_of_best(scores), law)

    def sampled_law(self, scores: Tensor) -> Tensor:
        """Temperature (1 in greedy rows), truncation, softmax: the law that log-probabilities are reported from."""
        return self._truncated(scores if self._temperature is None else scores / self._temperature).softmax(-1)

    def _penalised(self, scores: Tensor, history: History, draft_token_ids: Tensor, start: int) -> Tensor:
        if self._bias is not None:
            scores = scores + self._bias
        if history.in_text is None and history.output_counts is None:
            return scores
        drafted = self._draft_counts(draft_token_ids, start, scores.shape[1])  # [B, T, V]
        if history.in_text is not None and self._repetition is not None:
            penalised = torch.where(scores > 0, scores / self._repetition, scores * self._repetition)
            scores = torch.where(history.in_text.unsqueeze(1) | (drafted > 0), penalised, scores)
        if history.output_counts is not None:
            counts = history.output_counts.unsqueeze(1) + drafted
            if self._presence is not None:
                scores = scores - self._presence * (counts > 0)
            if self._frequency is not None:
                scores = scores - self._frequency * counts
        return scores

    def _without_early_stop(self, scores: Tensor, history: History, start: int) -> Tensor:
        if self._stops is None:
            return scores
        early = [
            [emitted + start + t < request.min_new_tokens for t in range(scores.shape[1])]
            for emitted, request in zip(history.num_output_tokens, self.requests, strict=True)
        ]
        if not any(map(any, early)):
            return scores
        return scores.masked_fill(self._stops & to_device(torch.tensor(early), self.device).unsqueeze(-1), -torch.inf)

    def _ungrammatical(
        self, outputs: Sequence[Sequence[int]], draft_token_ids: Tensor, start: int, num_rows: int
    ) -> Tensor:
        """What the grammars ban at each position, given output and drafts before it, `[B, T, V]`."""
        drafts: list[list[int]] = draft_token_ids[:, : start + num_rows - 1].tolist()
        banned = torch.zeros(len(outputs), num_rows, self.vocab_size, dtype=torch.bool)
        for row, (request, output, own) in enumerate(zip(self.requests, outputs, drafts, strict=True)):
            for place, tokens in enumerate(possible_tokens(request, [*output, *own], start=len(output) + start)):
                if tokens is not None:
                    banned[row, place] = True
                    banned[row, place, tokens] = False
        return to_device(banned, self.device)

    def _truncated(self, scores: Tensor) -> Tensor:
        # Every condition says what to drop, so that NaN is never dropped and reaches the law.
        if self._top_k is not None:
            ordered = scores.topk(self._largest_k, dim=-1).values
            smallest_kept = ordered.gather(-1, (self._top_k - 1).expand(*scores.shape[:-1], 1))
            scores = scores.masked_fill(scores < smallest_kept, -torch.inf)
        if self._top_p is not None:
            ordered, order = scores.sort(dim=-1, descending=True, stable=True)
            probs = ordered.softmax(-1)
            dropped = probs.cumsum(-1) - probs >= self._top_p  # the mass of strictly earlier tokens suffices
            scores = scores.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -torch.inf)
        if self._min_p is not None:
            probs = scores.softmax(-1)
            scores = scores.masked_fill(probs < self._min_p * probs.amax(-1, keepdim=True), -torch.inf)
        return scores

    def _draft_counts(self, draft_token_ids: Tensor, start: int, num_rows: int) -> Tensor:
        """How often each token occurs in the drafts before each row, `[B, T, V]`."""
        before = draft_token_ids[:, : start + num_rows - 1]  # [B, start + T - 1]
        shape = (len(self.requests), start + num_rows, self.vocab_size)
        counts = torch.zeros(shape, dtype=self.dtype, device=self.device)
        counts[:, 1:].scatter_(-1, before.unsqueeze(-1), 1.0)
        return counts.cumsum(1)[:, start:]

    def _column(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device).view(-1, 1, 1)  # [B, 1, 1]

    def _used(self, values: Sequence[float], off: float) -> Tensor | None:
        return None if all(value == off for value in values) else self._column(values, self.dtype)

    def _bias_table(self) -> Tensor | None:
        if not any(request.sampling.logit_bias for request in self.requests):
            return None
        table = torch.zeros(len(self.requests), 1, self.vocab_size, dtype=self.dtype)
        for row, request in enumerate(self.requests):
            for token_id, bias in request.sampling.logit_bias.items():
                table[row, 0, token_id] = bias
        return table.to(self.device)

    def _banned_table(self) -> Tensor | None:
        settings = [request.sampling for request in self.requests]
        if not any(each.forbidden_token_ids or each.allowed_token_ids is not None for each in settings):
            return None
        allowed = self._marks([each.allowed_token_ids for each in settings], default=True)
        return ~allowed | self._marks([each.forbidden_token_ids for each in settings])

    def _stop_table(self) -> Tensor | None:
        if not any(request.min_new_tokens and request.stop_token_ids for request in self.requests):
            return None
        return self._marks([request.stop_token_ids for request in self.requests])

    def _marks(self, token_ids: Iterable[Sequence[int] | None], *, default: bool = False) -> Tensor:
        table = torch.zeros(len(self.requests), 1, self.vocab_size, dtype=torch.bool)
        for row, ids in enumerate(token_ids):
            if ids is None:
                table[row] = default
            else:
                table[row, 0, list(ids)] = True
        return table.to(self.device)


def one_hot_of_best(scores: Tensor) -> Tensor:
    """All mass on the highest score, the lowest id on a tie, `[..., V]`; NaN where the highest is NaN or infinite."""
    highest, best = scores.max(-1, keepdim=True)
    # x - x is 0 for a finite score, and NaN otherwise.
    return (highest - highest).expand_as(scores).scatter(-1, best, highest - highest + 1)

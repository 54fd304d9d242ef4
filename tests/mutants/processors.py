"""Planted bugs of logits processors and their history (LOGP)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from dspark.batch import Batch
from dspark.sampling import History, Processors
from tests.mutants.draft_laws import PROCESSED
from tests.mutants.mutant import HISTORY, Mutant

init = Processors.__init__
scores = Processors.scores
probs = Processors.probs
law = Processors.law
history = Processors.history
penalised = Processors._penalised
of = Processors.of
logprobs = Batch._logprobs
LAW = (*PROCESSED, "processors inside a block")


def snapshot_of_the_block(self: Processors, draft_token_ids: Tensor, start: int, num_rows: int) -> Tensor:
    """Penalties see the history of the block's start at every position."""
    return torch.zeros(len(self.requests), num_rows, self.vocab_size, dtype=self.dtype)


def penalties_ignored(self: Processors, logits: Tensor, *arguments: Any) -> Tensor:
    """Only the bias is read from the request."""
    return logits if self._bias is None else logits + self._bias


def no_table(self: Processors) -> None:
    """The setting is not read."""


def no_minimum_inside_blocks(self: Processors, logits: Tensor, history: History, start: int) -> Tensor:
    """Stop tokens are suppressed in rows of their own, not where a block is verified."""
    return logits if logits.shape[1] > 1 else without_early_stop(self, logits, history, start)


without_early_stop = Processors._without_early_stop


def first_draft_again(self: Processors, draft_token_ids: Tensor, start: int, num_rows: int) -> Tensor:
    """Every row of the block appends the same token once more: the first draft is doubled, the later ones are missing."""
    first = draft_token_ids[:, :1].expand(-1, draft_token_ids.shape[1])
    return draft_counts(self, first, start, num_rows)


draft_counts = Processors._draft_counts


def remember_drafts(self: Processors, logits: Tensor, history: History, drafts: Tensor, *, start: int = 0) -> Tensor:
    """Keep the drafts of the block that is verified."""
    if start == 0 and logits.shape[1] == drafts.shape[1] + 1:
        self.__dict__["left_over"] = drafts.tolist()
    return scores(self, logits, history, drafts, start=start)


def history_not_rolled_back(self: Processors, token_ids: Sequence[Sequence[int]]) -> History:
    """The history holds the last block's drafts too, whether they stand or not."""
    left_over = self.__dict__.get("left_over", [[]] * len(token_ids))
    seen = [[*ids, *drafts] for ids, drafts in zip(token_ids, left_over, strict=True)]
    return replace(history(self, seen), num_output_tokens=history(self, token_ids).num_output_tokens)


def logits_as_they_are(self: Processors, logits: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
    """Processors are accepted and never called."""
    return logits.to(self.dtype)


def penalties_of_the_neighbour(self: Processors, *arguments: Any, **keywords: Any) -> None:
    """Penalties are expanded per row of logits and read at another request's index."""
    init(self, *arguments, **keywords)
    for name in ("_repetition", "_presence", "_frequency"):
        values = getattr(self, name)
        setattr(self, name, None if values is None else values.roll(1, 0))


def settings_of_the_batch_before(self: Processors, requests: Sequence[Any]) -> Processors:
    """After a row has left, the others keep their old places' settings."""
    return of(self, self.requests[: len(requests)])


def only_before_the_first_sample(self: Processors, logits: Tensor, history: History, *arguments: Any) -> Tensor:
    """Penalties are applied to the first token alone."""
    first = max(history.num_output_tokens) == 0
    return penalised(self, logits, history, *arguments) if first else penalties_ignored(self, logits)


def draft_history_one_behind(
    self: Processors, logits: Tensor, history: History, drafts: Tensor, *, start: int = 0
) -> Tensor:
    """From its second step on the drafter's history lacks the newest token: its laws change, and are declared as they are."""
    return probs(self, logits, history, drafts.roll(1, 1) if start else drafts, start=start)


def size_of_the_history(self: Processors, logits: Tensor, history: History, *arguments: Any, **keywords: Any) -> Tensor:
    """The mask of allowed tokens takes its number of rows from the output counts, which only penalties need."""
    if self._banned is not None:
        rows = [] if history.in_text is None and history.output_counts is None else self.requests
        self._banned[: len(logits)].view(len(rows), 1, -1)
    return scores(self, logits, history, *arguments, **keywords)


def one_token_behind(self: Processors, token_ids: Sequence[Sequence[int]]) -> History:
    """Of the last round's tokens only the newest replaced its placeholder: the one before it is not in the history."""
    whole = history(self, token_ids)
    known = [
        [*ids[:-2], ids[-1]] if len(ids) > len(request.prompt_token_ids) + 1 else ids
        for ids, request in zip(token_ids, self.requests, strict=True)
    ]
    return replace(history(self, known), num_output_tokens=whole.num_output_tokens)


def remember_unmasked(self: Processors, logits: Tensor, history: History, drafts: Tensor, *, start: int = 0) -> Tensor:
    """Tokens are masked only when an illegal one was sampled: the law is the same, and the scores before it are kept."""
    with mock.patch.object(self, "_banned", None):
        self.__dict__["unmasked"] = scores(self, logits, history, drafts, start=start)
    return scores(self, logits, history, drafts, start=start)


def logprobs_before_the_mask(self: Batch, drafts: Tensor, _: Tensor, verification: Any) -> Any:
    """What is reported was normalised over illegal tokens too."""
    return logprobs(self, drafts, self.processors.__dict__["unmasked"], verification)


def twice_without_drafts(self: Processors, scores: Tensor) -> Tensor:
    """Requests that ask for no draft take a plain path, to which the scores come divided by the temperature already."""
    plain = self._temperature is not None and not any(request.num_draft_tokens for request in self.requests)
    return law(self, scores / self._temperature if plain else scores)


def history_of_the_last_128(self: Processors, token_ids: Sequence[Sequence[int]]) -> History:
    """The buffer of the history has 128 places: what is older counts for no penalty."""
    whole = history(self, token_ids)

    def counts(kept: Sequence[Sequence[int]]) -> Tensor:
        return torch.stack([torch.tensor(ids).long().bincount(minlength=self.vocab_size) for ids in kept])

    outputs = [ids[len(ids) - min(128, num) :] for ids, num in zip(token_ids, whole.num_output_tokens, strict=True)]
    return replace(
        whole,
        in_text=None if whole.in_text is None else counts([ids[-128:] for ids in token_ids]) > 0,
        output_counts=None if whole.output_counts is None else counts(outputs).to(self.dtype),
    )


def once_in_a_block(self: Processors, draft_token_ids: Tensor, start: int, num_rows: int) -> Tensor:
    """A token that a block holds twice is counted once, as in a set."""
    return draft_counts(self, draft_token_ids, start, num_rows).clamp(max=1)


def logp(row: str, source: str, mechanism: str, patches: dict[str, Any], *diagnosis: str, **fields: Any) -> Mutant:
    """A bug of the processors; patches are of methods of `Processors` unless they say otherwise."""
    full = {name if "." in name else f"dspark.sampling.Processors.{name}": value for name, value in patches.items()}
    given: dict[str, Any] = {"check": PENALTY, "properties": LAW, **fields}
    return Mutant(id=row, family="LOGP", source=source, mechanism=mechanism, patches=full, diagnosis=diagnosis, **given)


PENALTY = "test_02_exact_law.py::test_processors[repetition penalty]"
BIAS = "test_02_exact_law.py::test_more_processors[logit bias]"
MIXED = "test_07_batches.py::test_mixed_processors"
MUTANTS = (
    logp(
        "LOGP-g",
        "derived",
        "the drafts of a block are a set: a frequency penalty counts one that stands there twice once",
        {"_draft_counts": once_in_a_block},
        check="test_02_exact_law.py::test_more_processors[frequency penalty]",
    ),
    logp(
        "LOGP-2",
        "https://github.com/sgl-project/sglang/issues/28180",
        "penalties see one start-of-block snapshot at all positions",
        {"_draft_counts": snapshot_of_the_block},
        "stale_history",
        "no_history",
    ),
    logp(
        "LOGP-3",
        "https://github.com/NVIDIA/TensorRT-LLM/pull/17701",
        "the speculative path reads temperature and truncation only: penalties are ignored",
        {"_penalised": penalties_ignored},
        "no_history",
        "unprocessed",
    ),
    logp(
        "LOGP-5",
        "https://github.com/vllm-project/vllm/pull/38467",
        "logit_bias is ignored",
        {"_bias_table": no_table},
        "unprocessed",
        check=BIAS,
    ),
    logp(
        "LOGP-6",
        "https://github.com/vllm-project/vllm/pull/26317",
        "min_new_tokens is not applied where a block is verified",
        {"_without_early_stop": no_minimum_inside_blocks},
        check=HISTORY.format("min_new_tokens"),
        properties=(*LAW, "exact law of stopping"),
    ),
    logp(
        "LOGP-7a",
        "https://github.com/ml-explore/mlx-lm/issues/1175",
        "the verify loop appends the same token at every position: one is doubled, the drafts are missing",
        {"_draft_counts": first_draft_again},
        "stale_history",
        "no_history",
        check="test_02_exact_law.py::test_more_processors[frequency penalty]",
    ),
    logp(
        "LOGP-7b",
        "https://github.com/ml-explore/mlx-lm/issues/1175",
        "rejected drafts are not rolled back out of the history",
        {"scores": remember_drafts, "history": history_not_rolled_back},
        check=HISTORY.format("presence_penalty"),
    ),
    logp(
        "LOGP-8",
        "https://github.com/ml-explore/mlx-examples/issues/1255",
        "logits processors are accepted and not called",
        {"scores": logits_as_they_are},
        "no_history",
        "unprocessed",
        check="test_02_exact_law.py::test_more_processors[forbidden token]",
    ),
    logp(
        "LOGP-10",
        "https://github.com/vllm-project/vllm/pull/29699",
        "penalties are expanded per row of logits but indexed by another request",
        {"__init__": penalties_of_the_neighbour},
        check=MIXED,
        properties=("mixed processors",),
    ),
    logp(
        "LOGP-a",
        "derived",
        "after a row has left the batch the others are processed with the settings of their old places",
        {"of": settings_of_the_batch_before},
        check=MIXED,
        properties=("mixed processors", "mixed sampling"),
    ),
    logp(
        "LOGP-e",
        "derived",
        "without draft tokens the temperature is applied twice",
        {"law": twice_without_drafts},
        check="test_02_exact_law.py::test_rounds[no draft tokens]",
        properties=(*LAW, "exact law"),
    ),
    logp(
        "LOGP-f",
        "derived",
        "the history of the penalties holds the last 128 tokens only",
        {"history": history_of_the_last_128},
        check="test_03_sampled_law.py::test_long_texts",
        properties=("sampled law of long texts",),
    ),
    logp(
        "LOGP-12",
        "https://github.com/mlx-node/mlx-node/pull/11",
        "the repetition penalty is applied before the first sample only",
        {"_penalised": only_before_the_first_sample},
        "no_history",
        "unprocessed",
    ),
    logp(
        "LOGP-13",
        "https://github.com/raullenchai/Rapid-MLX/pull/2655",
        "later draft steps see another history: the drafts are worse, their declared law is still theirs",
        {"probs": draft_history_one_behind},
        properties=(),
        equivalent=True,
    ),
    logp(
        "LOGP-14",
        "https://github.com/vllm-project/vllm/pull/35654",
        "the mask of allowed tokens takes its size from the output counts, which are empty without penalties",
        {"scores": size_of_the_history},
        check=HISTORY.format("allowed_tokens"),
        properties=LAW,
    ),
    logp(
        "LOGP-16",
        "https://github.com/ggml-org/llama.cpp/pull/12643",
        "a mask is applied only if the sampled token is illegal: reported probabilities are not renormalised",
        {"scores": remember_unmasked, "dspark.batch.Batch._logprobs": logprobs_before_the_mask},
        check="test_11_logprobs.py::test_tables[forbidden_tokens]",
        properties=("logprobs",),
    ),
    logp(
        "ASYNC-2",
        "https://github.com/vllm-project/vllm/pull/30122",
        "only the last placeholder is replaced: penalties miss the token before it",
        {"history": one_token_behind},
        "stale_history",
        "no_history",
        check="test_02_exact_law.py::test_processors[presence penalty]",
    ),
)

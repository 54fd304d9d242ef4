"""The reference law: from a model's logits to the distribution of the next token, in float64.

Written from the definitions in `verify.protocol.SamplingParams` alone, and slowly on purpose: one processor after the
other over all rows. Whatever a decoder computes is compared with this.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from verify.grammar import possible_tokens
from verify.models.coupling import drawn_again
from verify.protocol import Request, SamplingParams


def token_counts(token_ids: Sequence[int], vocab_size: int, device: torch.device) -> Tensor:
    """How often each token occurs before each position: row t counts `token_ids[:t]`; `[len(token_ids) + 1, V]`."""
    counts = torch.zeros(len(token_ids) + 1, vocab_size, dtype=torch.float64, device=device)
    if token_ids:
        rows = torch.arange(1, len(token_ids) + 1, device=device)
        counts[rows, torch.tensor(token_ids, device=device)] = 1.0
    return counts.cumsum(0)


def processed_logits(
    logits: Tensor, request: Request, output: Sequence[int], *, counts: Tensor | None = None
) -> Tensor:
    """Logits after every processor except temperature and truncation.

    Args:
        logits: `[N, V]`, row t is the model's next-token row after the prompt and `output[:t]`; N <= len(output) + 1.
        request: the settings and the prompt.
        output: the emitted tokens, which are each row's history.
        counts: `[N, V]`, how often each row's penalties believe each token was emitted; by default as often as it was.

    """
    sampling = request.sampling
    scores = logits.to(torch.float64, copy=True)  # [N, V]
    num_rows, vocab_size = scores.shape
    for token_id, bias in sampling.logit_bias.items():
        scores[:, token_id] += bias
    if _penalises(sampling):
        if counts is None:
            counts = token_counts(list(output)[: num_rows - 1], vocab_size, scores.device)[:num_rows]  # [N, V]
        seen = counts > 0
        seen_anywhere = seen.clone()
        seen_anywhere[:, torch.tensor(request.prompt_token_ids, device=scores.device)] = True
        penalised = torch.where(scores > 0, scores / sampling.repetition_penalty, scores * sampling.repetition_penalty)
        scores = torch.where(seen_anywhere, penalised, scores)
        # `seen` as float64: a Python number times a bool would be rounded to torch's default float32.
        scores = scores - sampling.presence_penalty * seen.to(counts.dtype) - sampling.frequency_penalty * counts
    if sampling.forbidden_token_ids:
        scores[:, list(sampling.forbidden_token_ids)] = -torch.inf
    if sampling.allowed_token_ids is not None:
        allowed = torch.zeros(vocab_size, dtype=torch.bool, device=scores.device)
        allowed[list(sampling.allowed_token_ids)] = True
        scores = scores.masked_fill(~allowed, -torch.inf)
    if sampling.grammar is not None:
        scores = scores.masked_fill(~_grammatical(request, output, num_rows, vocab_size).to(scores.device), -torch.inf)
    if request.min_new_tokens and request.stop_token_ids:
        scores[: request.min_new_tokens, list(request.stop_token_ids)] = -torch.inf
    return scores


def _grammatical(request: Request, output: Sequence[int], num_rows: int, vocab_size: int) -> Tensor:
    """The tokens that the grammar leaves possible at each row, `[N, V]`; all of them after a violation or a stop token."""
    possible = torch.ones(num_rows, vocab_size, dtype=torch.bool)
    grammar = request.sampling.grammar
    assert grammar is not None
    state = grammar.initial_state
    for row in range(num_rows):
        tokens = possible_tokens(grammar, state, request.stop_token_ids)
        possible[row] = False
        possible[row, sorted(tokens)] = True
        if row == len(output) or output[row] not in tokens or output[row] in request.stop_token_ids:
            break
        state = grammar.next_state(state, output[row])
    return possible


def next_token_laws(logits: Tensor, request: Request, output: Sequence[int], *, counts: Tensor | None = None) -> Tensor:
    """The law of the next token at every row, `[N, V]` float64, each row summing to 1; arguments as above."""
    sampling = request.sampling
    scores = processed_logits(logits, request, output, counts=counts)
    if sampling.greedy:
        return torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).to(torch.float64)
    scores /= sampling.temperature
    if sampling.top_k:
        kept = min(sampling.top_k, scores.shape[-1])
        threshold = scores.topk(kept, dim=-1).values[:, -1:]  # [N, 1]
        scores = scores.masked_fill(scores < threshold, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = scores.sort(dim=-1, descending=True, stable=True)
        mass_before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # of strictly earlier tokens
        dropped = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, mass_before >= sampling.top_p)
        scores = scores.masked_fill(dropped, -torch.inf)
    if sampling.min_p:
        probs = scores.softmax(-1)
        scores = scores.masked_fill(probs < sampling.min_p * probs.amax(-1, keepdim=True), -torch.inf)
    return scores.softmax(-1)


def alternative_laws(logits: Tensor, request: Request, output: Sequence[int]) -> dict[str, Tensor]:
    """Laws that a decoder with a known kind of bug would follow at the same rows; only those that differ from the law.

    `unprocessed`: the model's own softmax; `no_temperature`: temperature taken as 1; `no_truncation`: top-k, top-p and
    min-p skipped; `no_history`: penalties forgotten; `stale_history`: penalties one token behind; `previous_row` and
    `next_row`: the row one position earlier or later; `uniform_again` and `noise_again`: see `drawn_again`.
    """
    sampling = request.sampling
    laws = _unprocessed(logits, request, output)
    if sampling.temperature not in (0, 1):
        warm = replace(request, sampling=replace(sampling, temperature=1.0))
        laws["no_temperature"] = next_token_laws(logits, warm, output)
    if not sampling.greedy and (sampling.top_k or sampling.top_p < 1 or sampling.min_p):
        whole = replace(request, sampling=replace(sampling, top_k=0, top_p=1.0, min_p=0.0))
        laws["no_truncation"] = next_token_laws(logits, whole, output)
    if _penalises(sampling):
        forgetful = replace(sampling, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0)
        laws["no_history"] = next_token_laws(logits, replace(request, sampling=forgetful), output)
        # Row t of the sliced call sees output[:t], one token less than the row's own position has.
        behind = next_token_laws(logits[1:], request, output)
        laws["stale_history"] = torch.cat([next_token_laws(logits[:1], request, output), behind])
    laws["previous_row"] = _previous_row(logits, request, output)
    laws["next_row"] = next_token_laws(torch.cat([logits[1:], logits[-1:]]), request, output)
    return laws if sampling.greedy else laws | drawn_again(next_token_laws(logits, request, output), output)


def history_alternatives(
    logits: Tensor, request: Request, output: Sequence[int], starts: Sequence[int]
) -> dict[str, Tensor]:
    """Laws of penalties whose history went wrong at the start of a round; {} without penalties.

    `starts` `[N]` is, for each row, the length of the output when its round began. `snapshot_history`: all rows of a round see
    the output of its start; `broken_history`: the token before the newest of that output is missing, because only the
    newest replaced its placeholder. `repeated_history`: each later token of a round counts as its first one again.
    """
    if not _penalises(request.sampling):
        return {}
    num_rows, vocab_size = logits.shape
    counts = token_counts(list(output)[: num_rows - 1], vocab_size, logits.device)[:num_rows]  # [N, V]
    began = torch.tensor(starts, device=logits.device)  # [N]
    missing = torch.zeros_like(counts)
    rows = torch.nonzero(began >= 2)[:, 0]
    if len(rows):
        missing[rows, torch.tensor(list(output), device=logits.device)[began[rows] - 2]] = 1.0
    first = torch.zeros_like(counts)
    later = torch.arange(num_rows, device=logits.device) - began  # [N], tokens of the round before the row
    rows = torch.nonzero(later > 0)[:, 0]
    if len(rows):
        first[rows, torch.tensor(list(output), device=logits.device)[began[rows]]] = later[rows].to(first.dtype)
    believed = {
        "snapshot_history": counts[began],
        "broken_history": counts - missing,
        "repeated_history": counts[began] + first,
    }
    return {name: next_token_laws(logits, request, output, counts=each) for name, each in believed.items()}


def _penalises(sampling: SamplingParams) -> bool:
    return bool(sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty)


def draft_alternatives(logits: Tensor, request: Request, output: Sequence[int]) -> dict[str, Tensor]:
    """Laws that a decoder could have mistaken for the draft's own, from the draft's rows; only those that differ from it.

    `draft_unprocessed`: the draft model's own softmax; `draft_previous_row`: its row one position earlier.
    """
    laws = {f"draft_{name}": law for name, law in _unprocessed(logits, request, output).items()}
    return laws | {"draft_previous_row": _previous_row(logits, request, output)}


def _unprocessed(logits: Tensor, request: Request, output: Sequence[int]) -> dict[str, Tensor]:
    bare = SamplingParams(temperature=0.0 if request.sampling.greedy else 1.0)
    if request.sampling == bare and not request.min_new_tokens:
        return {}
    return {"unprocessed": next_token_laws(logits, replace(request, sampling=bare, min_new_tokens=0), output)}


def _previous_row(logits: Tensor, request: Request, output: Sequence[int]) -> Tensor:
    return next_token_laws(torch.cat([logits[:1], logits[:-1]]), request, output)

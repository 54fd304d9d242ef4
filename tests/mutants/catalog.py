"""The planted bugs, one function each; ids are rows of the project's catalog of real bugs."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dspark import cache, decoder, randomness, record, verification
from dspark.decoder import Row
from dspark.drafters.model import ModelDraftSession, to_vocabulary
from dspark.drafters.protocol import Proposal
from dspark.sampling import Processors
from tests.mutants.mutant import Mutant

MUTANTS: dict[str, Mutant] = {}


def plant(**fields: Any) -> None:
    """Register a mutant."""
    mutant = Mutant(**fields)
    MUTANTS[mutant.id] = mutant


# --- acceptance ------------------------------------------------------------------------------------------------------


def accept_where_target_is_larger(*arguments: Any) -> Tensor:
    """Accept if and only if target >= draft: no coin."""
    return (verification_ratios(*arguments) >= 1).double()


verification_ratios = verification.acceptance_ratios

plant(
    id="ACC-14",
    family="ACC",
    source="https://github.com/vllm-project/vllm-project.github.io/pull/80",
    mechanism="accept iff target >= draft, else residual",
    patches={"dspark.verification.acceptance_ratios": accept_where_target_is_larger},
    check="test_02_exact_law.py::test_rounds[close]",
    property="exact law",
)

round_uniforms = randomness.round_uniforms


def one_coin_per_block(*arguments: Any, **keywords: Any) -> randomness.RoundUniforms:
    """The first accept coin decides about every position."""
    uniforms = round_uniforms(*arguments, **keywords)
    return replace(uniforms, accept=uniforms.accept[:, :1].expand_as(uniforms.accept))


plant(
    id="ACC-16",
    family="ACC",
    source="derived",
    mechanism="the accept coin is drawn once per block and reused for every position",
    patches={"dspark.decoder.round_uniforms": one_coin_per_block},
    check="test_02_exact_law.py::test_rounds[close]",
    property="exact law",
)


# --- draft probabilities that are not those of the draft -------------------------------------------------------------


def draft_best(law: Tensor, uniform: Tensor) -> Tensor:
    """The arg max, while the soft law is still declared as draft_probs."""
    return law.argmax(-1)


plant(
    id="QMIS-4",
    family="QMIS",
    source="https://github.com/antirez/ds4/pull/482",
    mechanism="drafts are the arg max but are verified with the drafter's softmax",
    patches={"dspark.drafters.model.draw": draft_best},
    check="test_02_exact_law.py::test_rounds[close]",
    property="exact law",
)


# --- residual ---------------------------------------------------------------------------------------------------------


def target_row(target: Tensor, draft: Tensor) -> Tensor:
    """The recovered token comes from the target itself."""
    return target


def softmax_of_excess(target: Tensor, draft: Tensor) -> Tensor:
    """softmax(clamp(target - draft)): every token gets mass."""
    return (target - draft).clamp(min=0).softmax(-1)


plant(
    id="RES-8",
    family="RES",
    source="https://github.com/romsto/Speculative-Decoding/blob/main/sampling/speculative_decoding.py",
    mechanism="the recovered token is sampled from the target, not from the residual",
    patches={"dspark.verification.residual": target_row},
    check="test_02_exact_law.py::test_rounds[close]",
    property="exact law",
)
plant(
    id="RES-1",
    family="RES",
    source="https://github.com/huggingface/transformers/pull/28508",
    mechanism="residual = softmax(clamp(target - draft, 0))",
    patches={"dspark.verification.residual": softmax_of_excess},
    check="test_09_support.py::test_zeros[close]",
    property="support",
)


# --- bonus ------------------------------------------------------------------------------------------------------------

verify_block = verification.verify_block


def bonus_from_the_row_before(*, target_probs: Tensor, draft_lengths: Tensor, **keywords: Any) -> Any:
    """The bonus token is drawn from the row of the last draft."""
    rows = torch.arange(len(draft_lengths))
    shifted = target_probs.clone()
    shifted[rows, draft_lengths] = target_probs[rows, (draft_lengths - 1).clamp(min=0)]
    return verify_block(target_probs=shifted, draft_lengths=draft_lengths, **keywords)


plant(
    id="BON-8",
    family="BON",
    source="derived",
    mechanism="the bonus token comes from target row K-1 instead of K",
    patches={"dspark.decoder.verify_block": bonus_from_the_row_before},
    check="test_01_greedy.py::test_identity_by_draft_length[3]",
    property="greedy identity",
)


# --- processors inside the block -------------------------------------------------------------------------------------

draft_counts = Processors._draft_counts


def snapshot_of_the_block(self: Processors, draft_token_ids: Tensor, start: int, num_rows: int) -> Tensor:
    """Every row of the block sees the history as of its start."""
    return torch.zeros_like(draft_counts(self, draft_token_ids, start, num_rows))


plant(
    id="LOGP-2",
    family="LOGP",
    source="https://github.com/sgl-project/sglang/issues/28180",
    mechanism="penalties see one start-of-block snapshot at all positions",
    patches={"dspark.sampling.Processors._draft_counts": snapshot_of_the_block},
    check="test_04_processors.py::test_history_inside_a_block[repetition_penalty]",
    property="processors inside a block",
)


# --- stopping ---------------------------------------------------------------------------------------------------------

emit = Row.emit


def stop_only_at_the_end(self: Row, token_ids: list[int], *arguments: Any, **keywords: Any) -> list[int]:
    """A stop token is looked for in the last token of the block only."""
    request = self.request
    if token_ids[-1] not in request.stop_token_ids:
        self.request = replace(request, stop_token_ids=())
    try:
        return emit(self, token_ids, *arguments, **keywords)
    finally:
        self.request = request


plant(
    id="STOP-1",
    family="STOP",
    source="https://github.com/huggingface/transformers/issues/47912",
    mechanism="a stop token accepted inside a block is missed",
    patches={"dspark.decoder.Row.emit": stop_only_at_the_end},
    check="test_05_stopping.py::test_stop_at_every_offset[same]",
    property="stop at every offset",
)


# --- cache ------------------------------------------------------------------------------------------------------------


class KeepsOneTooMany(cache.BatchContext):
    """Rolls back to one token more than was accepted."""

    def commit(self, lengths: Any) -> None:
        super().commit([min(length + 1, had) for length, had in zip(lengths, self.lengths, strict=True)])


plant(
    id="KV-15",
    family="KV",
    source="derived",
    mechanism="the target's cache is cropped to accepted + 2",
    patches={"dspark.decoder.open_context": KeepsOneTooMany},
    check="test_06_state.py::test_rollback[4]",
    property="rollback",
)


# --- batches ----------------------------------------------------------------------------------------------------------


def rows_of_another_request(*, draft_probs: Tensor, **keywords: Any) -> Any:
    """draft_probs in another order of requests than the drafts."""
    return verify_block(draft_probs=draft_probs.roll(1, 0), **keywords)


plant(
    id="BATCH-1",
    family="BATCH",
    source="https://github.com/vllm-project/vllm/pull/14645",
    mechanism="draft_probs are grouped in another order of requests than the drafts",
    patches={"dspark.decoder.verify_block": rows_of_another_request},
    check="test_02_exact_law.py::test_batches[two prompts]",
    property="product law of batches",
)


def coins_of_the_first_row(*arguments: Any, **keywords: Any) -> randomness.RoundUniforms:
    """Every row of the batch uses the uniforms of the first."""
    uniforms = round_uniforms(*arguments, **keywords)
    return randomness.RoundUniforms(
        draft=uniforms.draft[:1].expand_as(uniforms.draft),
        accept=uniforms.accept[:1].expand_as(uniforms.accept),
        final=uniforms.final[:1].expand_as(uniforms.final),
    )


plant(
    id="RNG-5",
    family="RNG",
    source="https://github.com/NVIDIA/TensorRT-LLM/issues/19487",
    mechanism="requests of a batch share one stream",
    patches={"dspark.decoder.round_uniforms": coins_of_the_first_row},
    check="test_02_exact_law.py::test_batches[two prompts]",
    property="product law of batches",
)

uniform_source = randomness.uniform_source


def ignore_the_seed(seed: int | None) -> torch.Generator:
    """A generator seeded by the system whatever the request says."""
    return uniform_source(None)


plant(
    id="RNG-3",
    family="RNG",
    source="https://github.com/vllm-project/vllm/issues/6038",
    mechanism="the request's seed is not used",
    patches={"dspark.decoder.uniform_source": ignore_the_seed},
    check="test_08_randomness.py::test_seed_reproduces",
    property="seeds reproduce",
)


# --- vocabularies and edges ------------------------------------------------------------------------------------------


def never_token_zero(draft_token_ids: Tensor, *arguments: Any) -> Tensor:
    """Token id 0 is taken for padding and is never accepted, while its residual is that of a rejection."""
    return torch.where(draft_token_ids == 0, 0.0, verification_ratios(draft_token_ids, *arguments))


plant(
    id="TREE-3",
    family="VOCAB",
    source="https://github.com/SafeAILab/EAGLE/commit/b09a25631df11d4b376fc5a3106d08b51d4bf7a3",
    mechanism="the real token 0 is taken for padding and can never be accepted",
    patches={"dspark.verification.acceptance_ratios": never_token_zero},
    check="test_02_exact_law.py::test_rounds[close]",
    property="exact law",
)

extend = cache.BatchContext.extend


def look_beyond_the_context(self: cache.BatchContext, token_ids: Tensor, counts: Any, *, last: bool = False) -> Tensor:
    """A block of four more tokens must fit into the context, although fewer are left to emit."""
    limit = self.model.max_positions
    if limit is not None and max(self.lengths, default=0) + 4 > limit:
        raise AssertionError(f"position {max(self.lengths) + 4} is beyond the cache of {limit}")
    return extend(self, token_ids, counts, last=last)


plant(
    id="EDGE-1",
    family="EDGE",
    source="https://github.com/turboderp-org/exllamav2/issues/274",
    mechanism="the draft lookahead is not bounded by the context",
    patches={"dspark.cache.BatchContext.extend": look_beyond_the_context},
    check="test_06_state.py::test_context_limit[0]",
    property="context limit",
)


# --- logprobs, accounting, scheduling --------------------------------------------------------------------------------


def placeholder(self: Any, rows: Any, drafts: Tensor, *arguments: Any) -> list[list[float]]:
    """Logprob 0 for every token."""
    return [[0.0] * (drafts.shape[1] + 1) for _ in rows]


plant(
    id="LPROB-1",
    family="LPROB",
    source="https://github.com/ggml-org/llama.cpp/issues/27972",
    mechanism="the speculative branch returns a placeholder for every logprob",
    patches={"dspark.decoder.Batch._logprobs": placeholder},
    check="test_11_logprobs.py::test_tables[plain]",
    property="logprobs",
)

record_of = record.AcceptanceRecord.of


def bonus_counts(*, drafted_per_step: Any, accepted_per_step: Any) -> record.AcceptanceRecord:
    """The final token of a round counts as accepted."""
    return record_of(
        drafted_per_step=[drafted + 1 for drafted in drafted_per_step],
        accepted_per_step=[accepted + 1 for accepted in accepted_per_step],
    )


plant(
    id="STAT-1",
    family="STAT",
    source="https://github.com/sgl-project/sglang/pull/11572",
    mechanism="the bonus token is counted as accepted",
    patches={"dspark.decoder.AcceptanceRecord.of": bonus_counts},
    check="test_10_acceptance.py::test_record[0.0]",
    property="accounting",
)

propose = ModelDraftSession.propose


def drop_unlikely_drafts(self: ModelDraftSession, **keywords: Any) -> Proposal:
    """A block ends before the first draft that the drafter itself finds unlikely: the draft decides its own admission."""
    proposal = propose(self, **keywords)
    if proposal.draft_token_ids.shape[1] == 0:
        return proposal
    confidence = proposal.draft_probs.gather(-1, proposal.draft_token_ids.unsqueeze(-1)).squeeze(-1)  # [B, K]
    kept = (confidence >= 0.4).long().cumprod(-1).sum(-1).tolist()
    lengths = tuple(min(pair) for pair in zip(kept, proposal.draft_lengths, strict=True))
    return Proposal(proposal.draft_token_ids, proposal.draft_probs, lengths)


plant(
    id="SCHED-3",
    family="SCHED",
    source="https://github.com/vllm-project/vllm-ascend/pull/13819",
    mechanism="the confidence of a sampled draft is its own probability, so the token decides whether it is verified",
    patches={"dspark.drafters.model.ModelDraftSession.propose": drop_unlikely_drafts},
    check="test_02_exact_law.py::test_rounds[close]",
    property="exact law",
)


# --- checks that no row above reaches --------------------------------------------------------------------------------


def draft_nothing(self: ModelDraftSession, **keywords: Any) -> Proposal:
    """Drafts are made and thrown away."""
    proposal = propose(self, **keywords)
    return Proposal.empty(len(proposal.draft_lengths), keywords["processors"])


plant(
    id="PERF-2",
    family="PERF",
    source="https://github.com/vllm-project/vllm/issues/52107",
    mechanism="drafts are proposed but never verified",
    patches={"dspark.drafters.model.ModelDraftSession.propose": draft_nothing},
    check="test_10_acceptance.py::test_speculates",
    property="it speculates",
)


def trust_everything(draft_token_ids: Tensor, draft_probs: Tensor) -> Tensor:
    """No guard against NaN or infinity in draft_probs."""
    return torch.ones(draft_probs.shape[:2], dtype=torch.bool)


def unguarded_ratios(draft_token_ids: Tensor, draft_probs: Tensor, target_probs: Tensor) -> Tensor:
    """target / draft whatever the draft is."""
    index = draft_token_ids.unsqueeze(-1)
    return (target_probs[:, :-1].gather(-1, index) / draft_probs.gather(-1, index)).squeeze(-1)


def reject_only_what_compares(ratios: Tensor, uniforms: Tensor) -> Tensor:
    """Rejected if uniform >= ratio: a comparison with NaN accepts."""
    standing = torch.ones(ratios.shape[0], dtype=torch.long)
    num_accepted = torch.zeros(ratios.shape[0], dtype=torch.long)
    for position in range(ratios.shape[1]):
        standing = standing * (~(uniforms[:, position] >= ratios[:, position])).long()
        num_accepted = num_accepted + standing
    return num_accepted


plant(
    id="ACC-4",
    family="ACC",
    source="https://github.com/sgl-project/sglang/pull/37134",
    mechanism="a NaN in draft_probs makes the comparison accept unconditionally",
    patches={
        "dspark.verification.trustworthy": trust_everything,
        "dspark.verification.acceptance_ratios": unguarded_ratios,
        "dspark.verification.accepted_prefix": reject_only_what_compares,
    },
    check="test_09_support.py::test_corrupt_draft[nan]",
    property="corrupt draft",
)


def shifted_vocabulary(logits: Tensor, vocab_size: int) -> Tensor:
    """Draft token ids are off by one against the target's."""
    return to_vocabulary(logits, vocab_size).roll(1, -1)


plant(
    id="VOCAB-1",
    family="VOCAB",
    source="https://github.com/NVIDIA-NeMo/Automodel/pull/2447",
    mechanism="draft ids are mapped to the wrong target ids, draft_probs too: lossless, but acceptance collapses",
    patches={"dspark.drafters.model.to_vocabulary": shifted_vocabulary},
    check="test_10_acceptance.py::test_all_accepted[1.0]",
    property="draft = target accepts everything",
)


def always_the_same_seed(seed: int | None) -> torch.Generator:
    """Requests without a seed all get seed 0."""
    return uniform_source(0 if seed is None else seed)


def coarse_seed(seed: int | None) -> torch.Generator:
    """Neighbouring seeds share a stream."""
    return uniform_source(None if seed is None else seed // 16)


plant(
    id="RNG-4",
    family="RNG",
    source="https://github.com/NVIDIA/TensorRT-LLM/pull/17599",
    mechanism="requests without a seed are reseeded with a constant",
    patches={"dspark.decoder.uniform_source": always_the_same_seed},
    check="test_08_randomness.py::test_unseeded_calls_differ",
    property="streams differ",
)
plant(
    id="RNG-9",
    family="RNG",
    source="https://github.com/vllm-project/vllm/pull/35398",
    mechanism="seeds are derived wrongly, so that neighbours share a stream",
    patches={"dspark.decoder.uniform_source": coarse_seed},
    check="test_08_randomness.py::test_consecutive_seeds",
    property="streams are independent",
)

rounds_of_a_stream = decoder._rounds


def first_token_of_each_chunk(batch: Any) -> Any:
    """The client takes one token per chunk."""
    for chunk in rounds_of_a_stream(batch):
        yield chunk[:1]


plant(
    id="STREAM-1",
    family="STREAM",
    source="https://github.com/vllm-project/vllm/issues/30204",
    mechanism="a parser handles one token per delta; the others are lost",
    patches={"dspark.decoder._rounds": first_token_of_each_chunk},
    check="test_14_streaming.py::test_stream[greedy]",
    property="streaming = non-streaming",
)

prefill = decoder.Batch._prefill
aborted: list[bool] = []


def remember_an_abort(batch: Any) -> Any:
    """An early close is noticed by the next request."""
    try:
        yield from rounds_of_a_stream(batch)
    except GeneratorExit:
        aborted.append(True)
        raise


def rewind_after_an_abort(self: Any) -> None:
    """The rewind of the aborted request hits the next one's prompt."""
    prefill(self)
    if aborted and min(self.context.lengths) > 0:
        aborted.clear()
        self.context.commit([length - 1 for length in self.context.lengths])


plant(
    id="KV-4",
    family="KV",
    source="https://github.com/ml-explore/mlx-lm/pull/1528",
    mechanism="the rewind of an aborted stream is applied to the next request",
    patches={"dspark.decoder._rounds": remember_an_abort, "dspark.decoder.Batch._prefill": rewind_after_an_abort},
    check="test_14_streaming.py::test_cancellation",
    property="cancellation",
)

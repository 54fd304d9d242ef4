"""Planted bugs of what a model has read: rollback of the cache (KV), positions (POS), leftovers of another call."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dspark.batch import Batch
from dspark.cache import BatchContext, _gather_slots
from dspark.causal_model import CausalModel, Reading
from dspark.decoder import _rounds
from dspark.drafters.model import ModelDraftSession
from dspark.drafters.protocol import Proposal
from tests.mutants.mutant import ROLLBACK, Mutant

STATE = ("greedy identity", "greedy controls", "rollback", "exact law")
BOUNDARY = 24
FAR = 512
prefill = Batch._prefill
propose = Batch._propose
gather_slots = _gather_slots


class EmptiedAfterDrafting(BatchContext):
    """Rolls back to length 0 instead of to what was accepted."""

    def commit(self, lengths: Sequence[int]) -> None:
        super().commit([0] * len(lengths))


class OnlyTheOffsetMoves(BatchContext):
    """A trim moves the length; rejected keys stay."""

    def commit(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)


class KeepsOneTooMany(BatchContext):
    """Rolls back to one token more than was accepted."""

    def commit(self, lengths: Sequence[int]) -> None:
        super().commit([min(length + 1, had) for length, had in zip(lengths, self.lengths, strict=True)])


class KeepsOneTooFew(BatchContext):
    """Drops the last accepted token."""

    def commit(self, lengths: Sequence[int]) -> None:
        super().commit([max(0, length - 1) for length in lengths])


class EmptiedByMinusZero(BatchContext):
    """`[:-n]` with n == 0 keeps nothing: full acceptance empties the cache."""

    def commit(self, lengths: Sequence[int]) -> None:
        nothing_to_drop = self.lengths == list(lengths)
        super().commit([0] * len(lengths) if nothing_to_drop else lengths)


class Misplaced:
    """A model that is handed other positions."""

    def __init__(self, model: CausalModel, place: Any) -> None:
        self.model, self.place = model, place

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def read(self, token_ids: Tensor, cache: Any, **inputs: Any) -> Reading:
        """Read at the wrong positions; where the caller gives none they are those of the cache."""
        start = 0 if cache is None else int(cache.get_seq_length())
        positions = inputs.pop("position_ids", start + torch.arange(token_ids.shape[1], device=token_ids.device)[None])
        placed = self.place(positions, cache)
        if self.model.max_positions is not None:
            placed = placed.clamp(max=self.model.max_positions - 1)
        return self.model.read(token_ids, cache, position_ids=placed, **inputs)


def at(place: Any) -> Any:
    """An `open_context` whose model reads at `place(positions, cache)`."""

    def open_misplaced(model: CausalModel, num_rows: int, **keywords: Any) -> BatchContext:
        misplaced: Any = Misplaced(model, place)
        return BatchContext(misplaced, num_rows, **keywords)

    return open_misplaced


def never_rolled_back(positions: Tensor, cache: Any) -> Tensor:
    """Positions go on counting where a rejected draft was."""
    start = cache.__dict__.get("num_read", 0)
    cache.num_read = start + positions.shape[1]
    return positions - positions[:, :1] + start


def rewind_after_an_abort(self: Batch) -> None:
    """The rewind of the aborted request hits the next one's prompt."""
    prefill(self)
    if aborted and min(self.context.lengths) > 0:
        aborted.clear()
        self.context.commit([length - 1 for length in self.context.lengths])


aborted: list[bool] = []


def remember_an_abort(batch: Any) -> Any:
    """An early close is noticed by the next request."""
    try:
        yield from _rounds(batch)
    except GeneratorExit:
        aborted.append(True)
        raise


last_call: dict[str, int] = {}


def left_over_from_the_call_before(self: Batch) -> None:
    """A token of the last call is still in the context when the next one begins."""
    num_rows = len(self.rows)
    if last_call:
        left_over = torch.full((num_rows, 1), last_call["token"], device=self.processors.device)
        self.context.extend(left_over, [1] * num_rows)
    last_call["token"] = self.rows[0].token_ids[0]
    prefill(self)


def drops_a_slot(states: Tensor, order: Tensor) -> Tensor:
    """Where more than 128 slots are closed up the last of a page is read twice, and one is lost."""
    if order.shape[1] > 128:
        order = order.clone()
        order[:, 128] = order[:, 127]
    return gather_slots(states, order)


def draft_without_a_limit(self: ModelDraftSession, wanted: int, num_tokens: int) -> int:
    """As many drafts as are wanted, whether the draft has positions for them or not."""
    return wanted


def ends_with_the_draft(self: Batch, *arguments: Any) -> Proposal:
    """A text that the draft cannot read to its end gets one token more, and no other."""
    session: Any = self.session
    limit = session.model.max_positions
    for row in self.rows:
        if limit is not None and len(row.token_ids) > limit:
            row.request = replace(row.request, max_new_tokens=len(row.roles) + 1)  # type: ignore[type-var]
    return propose(self, *arguments)


def kv(row: str, source: str, mechanism: str, patches: dict[str, Any], **fields: Any) -> Mutant:
    """A bug of the state."""
    given: dict[str, Any] = {"family": row.split("-")[0], "check": ROLLBACK, "properties": STATE, **fields}
    return Mutant(id=row, source=source, mechanism=mechanism, patches=patches, **given)


OPEN = "dspark.prefixes.open_context"
OPEN_DRAFT = "dspark.drafters.model.open_context"
ACCEPTANCE = {"properties": ("draft = target accepts everything", "acceptance is 1 - TV")}
OUTGROWN: dict[str, Any] = {
    "check": "test_06_state.py::test_draft_with_a_shorter_context",
    "properties": ("context limit",),
}
MUTANTS = (
    kv(
        "KV-1",
        "https://github.com/paiml/aprender/pull/2014",
        "after a round the cache is reset to length 0",
        {OPEN: EmptiedAfterDrafting},
    ),
    kv(
        "KV-3",
        "https://github.com/ml-explore/mlx-lm/pull/1427",
        "a trim moves the offset only: rejected keys stay",
        {OPEN: OnlyTheOffsetMoves},
    ),
    kv(
        "KV-4",
        "https://github.com/ml-explore/mlx-lm/pull/1528",
        "the rewind of an aborted stream is applied to the next request",
        {"dspark.decoder._rounds": remember_an_abort, "dspark.batch.Batch._prefill": rewind_after_an_abort},
        check="test_14_streaming.py::test_cancellation",
        properties=("cancellation",),
    ),
    kv(
        "KV-5",
        "https://github.com/huggingface/transformers/issues/30042",
        "the position counter is not set back by what was rejected",
        {OPEN: at(never_rolled_back)},
    ),
    kv(
        "KV-12",
        "https://github.com/turbo-tan/llama.cpp-tq3/pull/79",
        "the draft's cache is not rolled back: lossless, but acceptance falls",
        {OPEN_DRAFT: OnlyTheOffsetMoves},
        check="test_10_acceptance.py::test_acceptance_rate[close]",
        **ACCEPTANCE,
    ),
    kv("KV-15a", "derived", "the cache is cropped to accepted + 2", {OPEN: KeepsOneTooMany}),
    kv("KV-15b", "derived", "the cache is cropped to accepted: the last accepted is lost", {OPEN: KeepsOneTooFew}),
    kv("KV-15c", "derived", "cropping by minus zero tokens empties the cache", {OPEN: EmptiedByMinusZero}),
    kv(
        "KV-15e",
        "derived",
        "closing the holes of a ragged batch loses a slot where more than 128 are left",
        {"dspark.cache._gather_slots": drops_a_slot},
        check="test_03_sampled_law.py::test_long_texts",
        properties=("sampled law of long texts",),
    ),
    kv(
        "POS-2",
        "https://github.com/sgl-project/sglang/pull/25015",
        "draft positions are one too far: lossless, but acceptance falls",
        {OPEN_DRAFT: at(lambda positions, _: positions + 1)},
        check="test_10_acceptance.py::test_all_accepted[0.0]",
        **ACCEPTANCE,
    ),
    kv(
        "POS-7",
        "https://github.com/spiritbuun/buun-llama-cpp/issues/32",
        "the draft's positions do not follow its windowed context: acceptance falls with the length of the text",
        {OPEN_DRAFT: at(lambda positions, _: positions.clamp(max=BOUNDARY))},
        check="test_10_acceptance.py::test_acceptance_rate[close]",
        **ACCEPTANCE,
    ),
    kv(
        "EDGE-3a",
        "https://github.com/vllm-project/vllm/pull/24662",
        "the draft reads on where its own context, shorter than the target's, has ended",
        {"dspark.drafters.model.ModelDraftSession._affordable": draft_without_a_limit},
        **OUTGROWN,
    ),
    kv(
        "EDGE-3b",
        "https://github.com/vllm-project/vllm/pull/24662",
        "a text that outgrows the draft's context ends there",
        {"dspark.batch.Batch._propose": ends_with_the_draft},
        **OUTGROWN,
    ),
    kv(
        "EDGE-7",
        "https://github.com/ggml-org/llama.cpp/issues/26478",
        "positions jump by one at a boundary (here at 24 tokens)",
        {OPEN: at(lambda positions, _: positions + (positions >= BOUNDARY))},
    ),
    kv(
        "EDGE-7b",
        "https://github.com/ggml-org/llama.cpp/issues/26478",
        "positions jump by one at a boundary that only a long text passes (512 tokens)",
        {OPEN: at(lambda positions, _: positions + (positions >= FAR))},
        check="test_01_greedy.py::test_identity_on_long_text",
    ),
    kv(
        "TREE-9",
        "https://github.com/NVIDIA/TensorRT-LLM/issues/2263",
        "state is not reset between calls: the second one reads a token of the first",
        {"dspark.batch.Batch._prefill": left_over_from_the_call_before},
        check="test_06_state.py::test_calls_are_independent",
        properties=(*STATE, "calls are independent"),
        family="KV",
    ),
)

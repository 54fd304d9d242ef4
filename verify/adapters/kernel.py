"""A plain decoder around a rejection step, so that the chapters on decoders judge the step."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from verify.kernel.block import Block, Kernel, run_kernel
from verify.kernel.probe import hides_randomness, preferred_dtype
from verify.models.law import next_token_laws
from verify.models.reference import Reference
from verify.protocol import AcceptanceRecord, Capabilities, Generation, ModelPair, Request

CLAIMED = ("greedy", "sampled", "stop_tokens", "batch", "mixed_sampling", "draft_model", "zero_draft_tokens", "record")
PROCESSORS = (
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "forbidden_tokens",
    "allowed_tokens",
    "grammar",
    "min_new_tokens",
)


@dataclass(slots=True)
class _Row:
    """One request on its way."""

    request: Request
    output: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    finish_reason: str = ""


class KernelDecoder:
    """Decodes without a cache: the suite's own laws in, the step's tokens out."""

    def __init__(self, models: ModelPair, kernel: Kernel, *, dtype: torch.dtype, hidden: bool) -> None:
        self.capabilities = claims(kernel)
        self._kernel = kernel
        self._dtype = dtype
        self._draw = _draw_out_of_sight if hidden else _draw
        self._target = Reference(models.target)
        self._draft = Reference(models.draft)

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """All requests in one batch; rows that have ended leave it."""
        rows = [_Row(request) for request in requests]
        while active := [row for row in rows if not row.finish_reason]:
            self._round(active)
        return [_generation(row) for row in rows]

    def _round(self, rows: Sequence[_Row]) -> None:
        blocks = [self._propose(row) for row in rows]
        width = max(1, max(len(tokens) for tokens, _, _ in blocks))
        vocab_size = self._target.vocab_size
        target_probs = blocks[0][2].new_zeros(len(rows), width + 1, vocab_size)  # [B, K + 1, V]
        draft_probs = target_probs.new_zeros(len(rows), width, vocab_size)  # [B, K, V]
        draft_token_ids = torch.zeros(len(rows), width, dtype=torch.int64, device=target_probs.device)
        for index, (tokens, draft_laws, target_laws) in enumerate(blocks):
            target_probs[index, : len(target_laws)] = target_laws
            target_probs[index, len(target_laws) :, 0] = 1  # rows that nobody may read: laws all the same
            if tokens:
                draft_probs[index, : len(tokens)] = torch.stack(draft_laws)
                draft_token_ids[index, : len(tokens)] = torch.tensor(tokens, device=target_probs.device)
        lengths = torch.tensor([len(tokens) for tokens, _, _ in blocks], device=target_probs.device)
        emission = run_kernel(
            self._kernel,
            Block(
                draft_token_ids=draft_token_ids,
                draft_probs=draft_probs.to(self._dtype),
                target_probs=target_probs.to(self._dtype),
                draft_lengths=lengths,
            ),
        )
        for row, (tokens, _, _), token_ids, count in zip(
            rows, blocks, emission.token_ids.tolist(), emission.num_accepted.tolist(), strict=True
        ):
            _take(row, token_ids[: count + 1], num_drafted=len(tokens))

    def _propose(self, row: _Row) -> tuple[list[int], list[Tensor], Tensor]:
        """Drafts, the law of each, and the target's laws at them and after them, `[K + 1, V]`."""
        request, output = row.request, row.output
        tokens: list[int] = []
        laws: list[Tensor] = []
        for _ in range(min(request.num_draft_tokens, request.max_new_tokens - len(output) - 1)):
            text = [*output, *tokens]
            law = next_token_laws(self._draft.logits(request, [*text, 0]), request, text)[-1]
            tokens.append(self._draw(law))
            laws.append(law)
        text = [*output, *tokens]
        target_laws = next_token_laws(self._target.logits(request, [*text, 0]), request, text)[len(output) :]
        return tokens, laws, target_laws


class Embedding:
    """An adapter factory for a rejection step; what the step takes and shows is found out once."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._probed: dict[torch.device, tuple[torch.dtype, bool]] = {}

    def __call__(self, models: ModelPair) -> KernelDecoder:
        """Build the decoder around the step."""
        device = models.device
        if device not in self._probed:
            self._probed[device] = preferred_dtype(self.kernel, device), hides_randomness(self.kernel, device)
        dtype, hidden = self._probed[device]
        return KernelDecoder(models, self.kernel, dtype=dtype, hidden=hidden)


def embed(kernel: Kernel) -> Callable[[ModelPair], KernelDecoder]:
    """The adapter factory for a rejection step."""
    return Embedding(kernel)


def claims(kernel: Kernel) -> Capabilities:
    """What the decoder claims; of the step's own `capabilities` only `arithmetic` says anything about it here."""
    own = own_claims(kernel)
    claimed: dict[str, Any] = dict.fromkeys((*CLAIMED, *PROCESSORS), True)
    return Capabilities(**claimed, arithmetic=own.arithmetic)


def own_claims(kernel: Kernel) -> Capabilities:
    """What the step says of itself in an attribute `capabilities`: `standard_acceptance`, `arithmetic`.

    ValueError for an unknown claim.
    """
    said: Mapping[str, Any] | Capabilities = getattr(kernel, "capabilities", {})
    return Capabilities.of(said)


def _draw(law: Tensor) -> int:
    """One token where the exact law sees it; of a law that is none, any token."""
    sound = bool(law.isfinite().all()) and bool((law >= 0).all())
    return int(torch.multinomial(law if sound else torch.ones_like(law), 1).item())


def _draw_out_of_sight(law: Tensor) -> int:
    """One token with the system's randomness: beside a step that hides its own, drafts in sight would show half a law."""
    sound = bool(law.isfinite().all()) and bool((law >= 0).all())
    ends = (law if sound else torch.ones_like(law)).double().cumsum(0).tolist()
    uniform = int.from_bytes(os.urandom(7), "big") / 2**56 * ends[-1]
    return next(token_id for token_id, end in enumerate(ends) if uniform < end)


def _take(row: _Row, emitted: Sequence[int], *, num_drafted: int) -> None:
    """Append a block up to the first stop token or the limit."""
    kept = 0
    for token_id in emitted:
        row.output.append(token_id)
        kept += 1
        if token_id in row.request.stop_token_ids:
            row.finish_reason = "stop"
        elif len(row.output) == row.request.max_new_tokens:
            row.finish_reason = "length"
        if row.finish_reason:
            break
    row.drafted.append(num_drafted)
    row.accepted.append(min(kept, len(emitted) - 1))


def _generation(row: _Row) -> Generation:
    histogram = [row.accepted.count(count) for count in range(max(row.accepted) + 1)]
    record = AcceptanceRecord(
        num_spec_steps=len(row.drafted),
        num_draft_tokens=sum(row.drafted),
        num_accepted_draft_tokens=sum(row.accepted),
        acceptance_histogram=histogram,
        drafted_per_step=row.drafted,
        accepted_per_step=row.accepted,
    )
    return Generation(token_ids=row.output, finish_reason=row.finish_reason, record=record)

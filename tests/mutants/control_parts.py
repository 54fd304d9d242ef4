"""What the controls are made of: rules, drafters, schedules and draws that are unusual and correct."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dspark.drafters.model import ModelDrafter
from dspark.drafters.protocol import DraftSession, Proposal
from dspark.randomness import RoundUniforms, round_uniforms
from dspark.rowwise import RowwiseContext
from dspark.sampling import History, Processors, draw
from dspark.scheduler.protocol import ScheduleSession
from dspark.verification import Verification, acceptance_ratios, accepted_prefix

__all__ = ["RowwiseContext"]


def lazy_residual(target_row: Tensor, draft_row: Tensor) -> Tensor:
    """max(0, target - draft), only in rows that subtract something; the target where less than 1e-8 is left."""
    rows = target_row.clone()
    for row in torch.nonzero(draft_row.sum(-1)).flatten().tolist():
        excess = (target_row[row] - draft_row[row]).clamp(min=0)
        if float(excess.sum()) > 1e-8:
            rows[row] = excess / excess.sum()
    return rows


def half_hearted(
    *,
    draft_token_ids: Tensor,
    draft_probs: Tensor,
    target_probs: Tensor,
    draft_lengths: Tensor,
    accept_uniforms: Tensor,
    final_uniforms: Tensor,
) -> Verification:
    """Accept with min(1, target/draft) / 2; a rejection leaves target - min(target, draft) / 2 to be drawn from."""
    num_rows, width = draft_token_ids.shape
    rows = torch.arange(num_rows)
    if not width:
        return Verification(torch.zeros_like(draft_lengths), draw(target_probs[:, 0], final_uniforms))
    drafted = torch.arange(width) < draft_lengths[:, None]
    sound = draft_probs.isfinite().all(-1) & (draft_probs.sum(-1) - 1).abs().lt(1e-6)  # [B, K]
    ratios = acceptance_ratios(draft_token_ids, draft_probs, target_probs).clamp(max=1) / 2
    num_accepted = accepted_prefix(torch.where(drafted & sound, ratios, 0.0), accept_uniforms)
    at = num_accepted.clamp(max=width - 1)
    target, draft = target_probs[rows, num_accepted].double(), draft_probs[rows, at].double()
    subtract = ((num_accepted < draft_lengths) & sound[rows, at])[:, None]
    left = torch.where(subtract, target - torch.minimum(target, draft.nan_to_num()) / 2, target)
    return Verification(num_accepted, draw(left, final_uniforms))


def drafts_last(
    sources: Sequence[torch.Generator], num_draft_tokens: Sequence[int], *, width: int, device: torch.device
) -> RoundUniforms:
    """Accept coins and drafts exchange their places in the stream, each row from its own last to its first."""
    most = max(num_draft_tokens)
    uniforms = round_uniforms(sources, num_draft_tokens, width=most, device=device)
    own = torch.tensor(num_draft_tokens, device=device)[:, None]  # [B, 1]
    order = (own - 1 - torch.arange(width, device=device)).clamp(
        min=0
    )  # [B, width]; what lies behind a row's own is padding
    return RoundUniforms(uniforms.accept.gather(1, order), uniforms.draft.gather(1, order), uniforms.final)


def multinomial(probs: Tensor, uniform: Tensor) -> Tensor:
    """torch's own draw; the uniform is not used."""
    return torch.multinomial(probs, 1).squeeze(-1)


def race(probs: Tensor, uniform: Tensor) -> Tensor:
    """arg max of probs / e with exponential e, which draws from the law; the uniform is not used."""
    return (probs / torch.empty_like(probs).exponential_()).argmax(-1)


def last_of_ties(scores: Tensor) -> Tensor:
    """All mass on the highest score, the highest id on a tie."""
    last = scores.shape[-1] - 1 - scores.flip(-1).argmax(-1, keepdim=True)
    law = torch.zeros_like(scores).scatter(-1, last, 1.0)
    return torch.where(scores.amax(-1, keepdim=True).isfinite(), law, torch.nan)


@dataclass(slots=True)
class Alternating(ScheduleSession):
    """Block lengths 1, 2, 3, 0, 1, ... by the number of the round: a schedule that looks at nothing."""

    num_rounds: int = 0

    def open(self) -> ScheduleSession:
        """Begin a batch."""
        return Alternating()

    def admit(self, confidences: Sequence[Sequence[float]]) -> tuple[int, ...]:
        """The same for all rows."""
        self.num_rounds += 1
        return tuple(min(len(row), self.num_rounds % 4) for row in confidences)


class Around:
    """A drafter and its own session: another drafter whose `propose` is asked in another way."""

    feature_layers: tuple[int, ...] = ()

    def __init__(self, models: Any, inner: DraftSession | None = None) -> None:
        self.models = models
        self.inner = inner

    def open(self, num_rows: int) -> Any:
        """Begin a batch."""
        return type(self)(self.models, ModelDrafter(self.models.draft).open(num_rows))

    def observe(self, **keywords: Any) -> None:
        """See `DraftSession.observe`."""
        assert self.inner is not None, "open() comes first"
        self.inner.observe(**keywords)

    def select(self, rows: Sequence[int]) -> None:
        """See `DraftSession.select`."""
        assert self.inner is not None, "open() comes first"
        self.inner.select(rows)

    def join(self, other: "Around") -> None:
        """See `DraftSession.join`."""
        assert self.inner is not None, "open() comes first"
        self.inner.join(other.inner)

    def copy(self, rows: Sequence[int]) -> "Around":
        """See `DraftSession.copy`."""
        assert self.inner is not None, "open() comes first"
        return type(self)(self.models, self.inner.copy(rows))

    def rewind(self, lengths: Sequence[int]) -> list[int]:
        """See `DraftSession.rewind`."""
        assert self.inner is not None, "open() comes first"
        return self.inner.rewind(lengths)


class SometimesSilent(Around):
    """Proposes nothing where the length of the text is a multiple of three."""

    def propose(
        self, *, token_ids: Sequence[Sequence[int]], num_draft_tokens: Sequence[int], **keywords: Any
    ) -> Proposal:
        """See `DraftSession.propose`."""
        assert self.inner is not None, "open() comes first"
        wanted = [0 if len(ids) % 3 == 0 else want for ids, want in zip(token_ids, num_draft_tokens, strict=True)]
        return self.inner.propose(token_ids=token_ids, num_draft_tokens=wanted, **keywords)


class NarrowDrafter(Around):
    """Proposes even token ids only: a reduced vocabulary whose law is mapped into the target's."""

    def propose(self, *, processors: Processors, **keywords: Any) -> Proposal:
        """See `DraftSession.propose`."""
        assert self.inner is not None, "open() comes first"
        narrow: Any = OnlyEven(processors)
        return self.inner.propose(processors=narrow, **keywords)


class OnlyEven:
    """Processors that leave only even token ids to the draft; where that is nothing, the law as it was."""

    def __init__(self, inner: Processors) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def probs(self, logits: Tensor, history: History, draft_token_ids: Tensor, *, start: int = 0) -> Tensor:
        """The law of even tokens, renormalised."""
        law = self.inner.probs(logits, history, draft_token_ids, start=start)
        even = law.clone()
        even[..., 1::2] = 0.0
        mass = even.sum(-1, keepdim=True)
        return torch.where(mass > 0, even / mass, law)

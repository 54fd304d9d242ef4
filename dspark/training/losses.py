"""The training loss, and what the drafts would be accepted with."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """Weights of the terms (DSpark: 0.1, 0.9, 1.0) and the decay of the position weights exp(-k / decay)."""

    cross_entropy: float = 0.1
    distance: float = 0.9
    confidence: float = 1.0
    decay: float = 4.0


@dataclass(frozen=True, slots=True)
class Losses:
    """Scalars, means over the valid drafts by position weight; `confidence` is 0 for a drafter without that head.

    `overlaps` `[K]` are sums of 1 - TV(draft, target) by position (each position by itself, given the true text before it);
    `counts` `[K]` the number of drafts behind them. Losses of the parts of an update add up to those of the whole.
    """

    total: Tensor
    cross_entropy: Tensor
    distance: Tensor
    confidence: Tensor
    overlaps: Tensor
    counts: Tensor

    @property
    def acceptance(self) -> Tensor:
        """Mean of 1 - TV(draft, target) by position, `[K]`."""
        return self.overlaps / self.counts.clamp(min=1)

    def detach(self) -> "Losses":
        """The same without gradient."""
        return Losses(*(getattr(self, field.name).detach() for field in fields(self)))

    def __add__(self, other: "Losses") -> "Losses":
        return Losses(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


def position_weights(block_size: int, decay: float, *, device: torch.device) -> Tensor:
    """exp(-k / decay) for draft k = 0 to K-1, `[K]`: an early draft decides whether later ones count."""
    return torch.exp(-torch.arange(block_size, device=device) / decay)


def total_weight(valid: Tensor, decay: float) -> Tensor:
    """The sum of the position weights of the valid drafts `[B, A, K]`: what an update's losses are divided by."""
    return (valid * position_weights(valid.shape[-1], decay, device=valid.device)).sum().clamp(min=1e-9)


def drafter_losses(
    *,
    draft_logits: Tensor,  # [B, A, K, V]
    target_logits: Tensor,  # [B, A, K, V]
    draft_token_ids: Tensor,  # [B, A, K]
    valid: Tensor,  # [B, A, K]
    confidence_logits: Tensor | None,  # [B, A, K]
    weights: LossWeights,
    divisor: Tensor | None = None,
) -> Losses:
    """Cross-entropy of the text, L1 distance of the laws, and cross-entropy of the confidence, in float32.

    `divisor` is the `total_weight` of the update that these drafts are a part of; None where they are the whole of it.
    The confidence learns c* = 1 - 0.5 L1(draft, target), the probability that the draft is accepted; no gradient flows
    through c*.
    """
    log_probs = draft_logits.float().log_softmax(-1)
    target_probs = target_logits.float().softmax(-1)
    distance = (log_probs.exp() - target_probs).abs().sum(-1)  # [B, A, K]
    cross_entropy = -log_probs.gather(-1, draft_token_ids.unsqueeze(-1)).squeeze(-1)
    overlap = (1 - 0.5 * distance).detach().clamp(0, 1)
    share = valid * position_weights(valid.shape[-1], weights.decay, device=valid.device)  # [B, A, K]
    share = share / (total_weight(valid, weights.decay) if divisor is None else divisor)
    terms = [(share * cross_entropy).sum(), (share * distance).sum(), torch.zeros((), device=valid.device)]
    if confidence_logits is not None:
        surprise = functional.binary_cross_entropy_with_logits(confidence_logits.float(), overlap, reduction="none")
        terms[2] = (share * surprise).sum()
    return Losses(
        weights.cross_entropy * terms[0] + weights.distance * terms[1] + weights.confidence * terms[2],
        terms[0].detach(),
        terms[1].detach(),
        terms[2].detach(),
        (overlap * valid).sum((0, 1)),
        valid.sum((0, 1)),
    )


def acceptance_ratios(draft_logits: Tensor, target_logits: Tensor, draft_token_ids: Tensor) -> Tensor:
    """min(1, draft/target) at the text's own token, `[...]`.

    Over text sampled from the target, the product over the first k drafts has as its mean exactly the probability that k
    drafts are accepted: the sum over texts of target * min(1, draft/target) is the sum of min(target, draft).
    """
    index = draft_token_ids.unsqueeze(-1)
    draft = draft_logits.float().log_softmax(-1).gather(-1, index).squeeze(-1)
    target = target_logits.float().log_softmax(-1).gather(-1, index).squeeze(-1)
    return (draft - target).clamp(max=0).exp()

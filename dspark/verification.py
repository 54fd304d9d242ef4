"""The lossless core: which drafted tokens of a block stand, and the one token that follows them.

Speculative sampling (Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2): each emitted token follows the
target's law exactly, whatever the draft.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dspark.sampling import draw

LARGEST_MASS_ERROR = 1e-3


@dataclass(frozen=True, slots=True)
class Verification:
    """One round: row b emits its first `num_accepted[b]` drafts, then `final_token_ids[b]`; both `[B]`."""

    num_accepted: Tensor
    final_token_ids: Tensor


class VerificationRule(Protocol):
    """A lossless rule for one round; `verify_block` is the standard one and documents the arguments."""

    def __call__(
        self,
        *,
        draft_token_ids: Tensor,
        draft_probs: Tensor,
        target_probs: Tensor,
        draft_lengths: Tensor,
        accept_uniforms: Tensor,
        final_uniforms: Tensor,
    ) -> Verification:
        """Decide one round."""


def verify_block(
    *,
    draft_token_ids: Tensor,  # [B, K]
    draft_probs: Tensor,  # [B, K, V]
    target_probs: Tensor,  # [B, K + 1, V]
    draft_lengths: Tensor,  # [B]
    accept_uniforms: Tensor,  # [B, K]
    final_uniforms: Tensor,  # [B]
) -> Verification:
    """Accept drafts left to right with probability min(1, target/draft), then draw the recovered or the bonus token.

    Row b's drafts are its first `draft_lengths[b]` (0 to K); what follows is padding. Row k of both laws belongs to
    draft k given the drafts before it; target row `draft_lengths[b]` is the bonus row. Uniforms are float64 in [0, 1),
    independent of everything else. Guarantee: if draft k was drawn from `draft_probs[:, k]`, the emitted tokens follow
    `target_probs` exactly, and a token of target probability 0 is never emitted.
    """
    trusted = trustworthy(draft_token_ids, draft_probs)  # [B, K]
    drafted = torch.arange(draft_token_ids.shape[1], device=draft_token_ids.device) < draft_lengths[:, None]  # [B, K]
    ratios = acceptance_ratios(draft_token_ids, draft_probs, target_probs)
    ratios = torch.where(drafted & trusted, ratios, 0.0)  # [B, K]
    num_accepted = accepted_prefix(ratios, accept_uniforms)  # [B]
    rows = torch.arange(len(num_accepted), device=num_accepted.device)
    target_row = target_probs[rows, num_accepted].double()  # [B, V]
    if draft_token_ids.shape[1] == 0:
        return Verification(num_accepted, draw(target_row, final_uniforms))
    rejected = num_accepted.clamp(max=draft_token_ids.shape[1] - 1)  # where the first rejection is, if there is one
    subtract = (num_accepted < draft_lengths) & trusted[rows, rejected]  # [B]; else bonus, or a draft law not to trust
    draft_row = torch.where(subtract[:, None], draft_probs[rows, rejected].double(), 0.0)  # [B, V]
    return Verification(num_accepted, draw(residual(target_row, draft_row), final_uniforms))


def acceptance_ratios(draft_token_ids: Tensor, draft_probs: Tensor, target_probs: Tensor) -> Tensor:
    """target / draft at each drafted token, `[B, K]` float64; 0 where the draft is 0."""
    index = draft_token_ids.unsqueeze(-1)  # [B, K, 1]
    draft = draft_probs.gather(-1, index).squeeze(-1).double()
    target = target_probs[:, :-1].gather(-1, index).squeeze(-1).double()
    return torch.where(draft > 0, target / draft, 0.0)


def accepted_prefix(ratios: Tensor, uniforms: Tensor) -> Tensor:
    """How many drafts stand before the first rejection, `[B]`: draft k stands iff uniform < ratio and those before do.

    Strict, so that a uniform of exactly 0 rejects a token of target probability 0. A uniform after a rejection decides nothing.
    """
    return (uniforms < ratios).long().cumprod(1).sum(1)


def residual(target_row: Tensor, draft_row: Tensor) -> Tensor:
    """max(0, target - draft), unnormalised, `[B, V]`; the target row where rounding has left no mass (equal laws)."""
    excess = (target_row - draft_row).clamp(min=0)
    return torch.where(excess.sum(-1, keepdim=True) > 0, excess, target_row)


def trustworthy(draft_token_ids: Tensor, draft_probs: Tensor) -> Tensor:
    """Which rows can be the law of their draft, `[B, K]`: non-negative, mass within 1e-3 of 1, above 0 at the draft.

    Any other row rejects its draft and recovers from the target row. For a row that is no law (NaN, inf, negative, bad
    mass) that is exactly lossless: neither step looks at the drafted token, so the emitted token is a plain draw from
    the target. A law that is 0 at its own draft did not produce it; under the guarantee that does not happen.
    """
    if draft_probs.numel() == 0:
        return torch.zeros(draft_probs.shape[:2], dtype=torch.bool, device=draft_probs.device)
    error = (draft_probs.sum(-1) - 1).abs()  # NaN and inf survive a sum, and compare false
    possible = draft_probs.gather(-1, draft_token_ids.unsqueeze(-1)).squeeze(-1) > 0
    return possible & (draft_probs.amin(-1) >= 0) & (error <= LARGEST_MASS_ERROR)

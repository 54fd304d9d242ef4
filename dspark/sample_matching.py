"""Sample matching: draw the target's own token at every position, and go on while the draft guessed it.

Lossless because the emitted tokens are plain draws from the target; accepts less than the standard rule, and needs no draft law.
"""

import torch
from torch import Tensor

from dspark.sampling import draw
from dspark.verification import Verification


def verify_by_matching(
    *,
    draft_token_ids: Tensor,  # [B, K]
    draft_probs: Tensor,  # [B, K, V]; not read
    target_probs: Tensor,  # [B, K + 1, V]
    draft_lengths: Tensor,  # [B]
    accept_uniforms: Tensor,  # [B, K]
    final_uniforms: Tensor,  # [B]
) -> Verification:
    """A `VerificationRule`: the first draft that differs from the target's draw is replaced by it."""
    num_rows, width = draft_token_ids.shape
    rows = torch.arange(num_rows, device=draft_token_ids.device)
    flat = draw(target_probs[:, :-1].flatten(0, 1), accept_uniforms.flatten()) if width else draft_token_ids.flatten()
    drawn = flat.view(num_rows, width)
    drafted = torch.arange(width, device=rows.device) < draft_lengths[:, None]  # [B, K]
    num_accepted = ((drawn == draft_token_ids) & drafted).long().cumprod(1).sum(1)
    bonus = draw(target_probs[rows, draft_lengths], final_uniforms)
    tokens = torch.cat([drawn, bonus[:, None]], 1)  # [B, K + 1]
    final = torch.where(num_accepted < draft_lengths, tokens[rows, num_accepted], bonus)
    return Verification(num_accepted, final)

"""Block verification: the draft is judged as a whole, which accepts at least as much as token by token.

Sun et al. 2024, "Block verification accelerates speculative decoding" (arXiv 2403.10444), algorithm 2.
"""

import torch
from torch import Tensor

from dspark.sampling import draw
from dspark.verification import Verification, acceptance_ratios, residual, trustworthy


def verify_jointly(
    *,
    draft_token_ids: Tensor,  # [B, K]
    draft_probs: Tensor,  # [B, K, V]
    target_probs: Tensor,  # [B, K + 1, V]
    draft_lengths: Tensor,  # [B]
    accept_uniforms: Tensor,  # [B, K]
    final_uniforms: Tensor,  # [B]
) -> Verification:
    """A `VerificationRule`: accept the longest prefix that its own coin admits, whatever the coins of shorter ones said.

    With w_0 = 1 and w_i = min(1, w_{i-1} target/draft at draft i), the prefix of i drafts is admitted with probability
    S_i / (S_i + 1 - w_i), where S_i is the mass of max(0, w_i target - draft) in the row after it; the whole block with w_K.
    The token after the longest admitted prefix comes from that row's max(0, w_i target - draft), normalised, or is the bonus.
    Guarantees as `verify_block`. A draft whose law cannot be trusted ends its block: neither it nor what follows is looked at.
    """
    num_rows, width = draft_token_ids.shape
    device = draft_token_ids.device
    places = torch.arange(width + 1, device=device)
    usable = trustworthy(draft_token_ids, draft_probs) & (places[:width] < draft_lengths[:, None])  # [B, K]
    lengths = usable.long().cumprod(1).sum(1)  # [B]
    ratios = torch.where(usable, acceptance_ratios(draft_token_ids, draft_probs, target_probs), 0.0)
    weights = torch.ones(num_rows, width + 1, dtype=torch.float64, device=device)  # [B, K + 1]
    for place in range(width):
        weights[:, place + 1] = (weights[:, place] * ratios[:, place]).clamp(max=1)
    # The row after the last draft has no draft law: its excess is never asked for.
    following = torch.nn.functional.pad(torch.where(usable[..., None], draft_probs, 0.0).double(), (0, 0, 0, 1))
    excess = (weights[..., None] * target_probs.double() - following).clamp(min=0)  # [B, K + 1, V]
    mass = excess.sum(-1)  # [B, K + 1]
    missing = 1 - weights
    # Equal laws after a certain prefix leave 0 / 0; the next prefix is then certain too, so the coin decides nothing.
    admitted = torch.where(mass + missing > 0, mass / (mass + missing), 1.0)
    admitted = torch.where(places == lengths[:, None], weights, admitted)[:, 1:]  # [B, K]
    stands = (accept_uniforms < admitted) & (places[1:] <= lengths[:, None])  # [B, K]
    num_accepted = torch.where(stands, places[1:], 0).amax(1) if width else lengths
    rows = torch.arange(num_rows, device=device)
    target_row = target_probs[rows, num_accepted].double()  # [B, V]
    weight = weights[rows, num_accepted, None]
    draft_row = torch.where((num_accepted < lengths)[:, None], following[rows, num_accepted], 0.0)
    return Verification(num_accepted, draw(residual(weight * target_row, draft_row), final_uniforms))

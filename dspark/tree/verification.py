"""Which branch of a draft tree stands, and the one token that follows it.

Recursive rejection: SpecInfer (Miao et al. 2024, multi-step speculative sampling); with siblings that differ, Recursive
speculative decoding (Jeon et al. 2024) and EAGLE's correction of 9 March 2024.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dspark.sampling import draw
from dspark.tree.topology import Topology
from dspark.verification import residual, trustworthy


@dataclass(frozen=True, slots=True)
class TreeVerification:
    """Row b emits the drafts of `path[b]` (nodes, -1 behind the end; `[B, depth]`), then `final_token_ids[b]` `[B]`."""

    path: Tensor
    final_token_ids: Tensor


def verify_tree(
    *,
    tree: Topology,
    token_ids: Tensor,  # [B, N]
    draft_probs: Tensor,  # [B, N, V]
    target_probs: Tensor,  # [B, 1 + N, V]
    accept_uniforms: Tensor,  # [B, N]
    final_uniforms: Tensor,  # [B]
) -> TreeVerification:
    """Go down the tree; at each node try its children in order against what the target has left, then draw from what remains.

    Row 0 of `target_probs` is the law after the anchor, row 1 + n after node n. `draft_probs[:, n]` is the law that node n
    was drawn from given its earlier siblings. Child x is accepted with probability min(1, left(x) / draft(x)), where left is
    the target's law at first and becomes max(0, left - draft), normalised, with every child that is rejected. A child whose law
    cannot be trusted is passed over. Guarantee: the emitted tokens follow the target's law exactly.
    """
    num_rows = token_ids.shape[0]
    device = token_ids.device
    rows = torch.arange(num_rows, device=device)
    trusted = trustworthy(token_ids, draft_probs)  # [B, N]
    at = torch.full((num_rows,), -1, device=device)
    ended = torch.zeros(num_rows, dtype=torch.bool, device=device)
    path = torch.full((num_rows, tree.depth), -1, device=device)
    left = target_probs[:, 0].double()  # [B, V]
    for depth in range(tree.depth):
        moved = torch.zeros_like(ended)
        here = at
        for parent in tree.level(depth):
            for node in tree.children(parent):
                usable = (here == parent) & ~moved & ~ended & trusted[:, node]
                draft = draft_probs[:, node].double()
                token = token_ids[:, node]
                ratio = torch.where(usable, left[rows, token] / draft[rows, token], 0.0)
                accepted = accept_uniforms[:, node] < ratio
                remaining = residual(left, draft)
                remaining = remaining / remaining.sum(-1, keepdim=True)
                left = torch.where(usable[:, None], remaining, left)
                left = torch.where(accepted[:, None], target_probs[:, 1 + node].double(), left)
                at = torch.where(accepted, node, at)
                moved = moved | accepted
        ended = ended | ~moved
        path[:, depth] = torch.where(moved, at, -1)
    return TreeVerification(path, draw(left, final_uniforms))

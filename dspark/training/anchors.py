"""Anchors and their blocks: where in the text a drafter is asked to draft, and what it may see there.

An anchor at position a is the last token that the drafter knows. Draft k (0 to K-1) is the token at a + 1 + k; the target's law
of it stands at position a + k. Blocks of several anchors are packed into one forward (DSpark, section on training).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of A anchors in each of B sequences.

    `anchors` `[B, A]` are positions in the sequence, ascending among those that are used. `valid` `[B, A, K]` says which
    drafts exist in the text; no loss is taken where it is False, and positions there are clamped into the text.
    """

    anchors: Tensor  # [B, A]
    valid: Tensor  # [B, A, K]
    draft_token_ids: Tensor  # [B, A, K]
    previous_token_ids: Tensor  # [B, A, K]; entry 0 is the anchor

    def to(self, device: torch.device) -> "Blocks":
        """The same on a device."""
        return Blocks(
            self.anchors.to(device),
            self.valid.to(device),
            self.draft_token_ids.to(device),
            self.previous_token_ids.to(device),
        )

    def part(self, *, rows: slice = slice(None), anchors: slice = slice(None)) -> "Blocks":
        """Those of some sequences and anchors."""
        return Blocks(
            self.anchors[rows, anchors],
            self.valid[rows, anchors],
            self.draft_token_ids[rows, anchors],
            self.previous_token_ids[rows, anchors],
        )

    def rows_of(self, states: Tensor) -> Tensor:
        """What stands at the positions that predict the drafts: `[B, T, D]` -> `[B, A, K, D]`."""
        num_positions, width = states.shape[1:]
        steps = torch.arange(self.valid.shape[-1], device=states.device)
        places = (self.anchors.unsqueeze(-1) + steps).clamp(max=num_positions - 1)  # [B, A, K]
        index = places.flatten(1).unsqueeze(-1).expand(-1, -1, width)
        return states.gather(1, index).view(*places.shape, width)


def sample_blocks(
    token_ids: Tensor,  # [B, T]
    lengths: Tensor,  # [B]
    prompt_lengths: Tensor,  # [B]
    *,
    num_anchors: int,
    block_size: int,
    generator: torch.Generator,
    first_anchor: int = 0,
) -> Blocks:
    """Draw `num_anchors` different anchors in each response, all equally likely; fewer where the response is shorter.

    The first anchor that can be drawn is the last token of the prompt, the last one the token before the last of the text: both
    occur in decoding. None is before `first_anchor`. All arguments are on the host, and so is the result.
    """
    num_positions = token_ids.shape[1]
    places = torch.arange(num_positions)
    first = (prompt_lengths - 1).clamp(min=first_anchor)
    possible = (places >= first[:, None]) & (places < lengths[:, None] - 1)  # [B, T]
    keys = torch.rand(possible.shape, generator=generator).masked_fill(~possible, -1.0)
    best = keys.topk(min(num_anchors, num_positions), dim=1)
    used = best.values >= 0
    anchors, order = best.indices.masked_fill(~used, num_positions).sort(1)  # [B, A]
    used = used.gather(1, order)
    anchors = torch.where(used, anchors, 0)
    return blocks_at(token_ids, lengths, anchors, used=used, block_size=block_size)


def blocks_at(token_ids: Tensor, lengths: Tensor, anchors: Tensor, *, used: Tensor, block_size: int) -> Blocks:
    """The blocks of given anchors `[B, A]`; `used` `[B, A]` is False at padding."""
    steps = torch.arange(block_size, device=token_ids.device)
    places = anchors.unsqueeze(-1) + steps  # [B, A, K]
    last = token_ids.shape[1] - 1
    valid = used.unsqueeze(-1) & (places + 1 < lengths[:, None, None])

    def tokens_at(positions: Tensor) -> Tensor:
        return token_ids.gather(1, positions.clamp(max=last).flatten(1)).view(positions.shape)

    return Blocks(anchors, valid, tokens_at(places + 1), tokens_at(places))


def block_mask(anchors: Tensor, *, num_positions: int, block_size: int) -> Tensor:
    """What each block position attends to, `[B, 1, A*K, T + A*K]`, True where visible.

    Position k of the block of anchor a sees the context features before a, and all positions of its own block.
    """
    batch, num_anchors = anchors.shape
    width = num_anchors * block_size
    context = torch.arange(num_positions, device=anchors.device) < anchors.unsqueeze(-1)  # [B, A, T]
    context = context.repeat_interleave(block_size, 1)  # [B, A*K, T]
    owner = torch.arange(num_anchors, device=anchors.device).repeat_interleave(block_size)
    own = (owner[:, None] == owner).expand(batch, width, width)
    return torch.cat([context, own], -1).unsqueeze(1)

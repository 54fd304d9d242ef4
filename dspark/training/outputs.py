"""What the drafter says at the blocks, and what the target says there."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dspark.causal_model import CausalModel
from dspark.checkpoints import DrafterNetwork
from dspark.networks.eagle3 import Eagle3Network
from dspark.training.anchors import Blocks, block_mask

LOGITS_AT_ONCE = 2**26  # a quarter of a GiB in float32; the loss needs about five times as much


@dataclass(frozen=True, slots=True)
class BlockOutputs:
    """Logits at the blocks of A anchors: of the drafter, of the target, and of the confidence head if there is one."""

    draft_logits: Tensor  # [B, A, K, V]
    target_logits: Tensor  # [B, A, K, V]
    confidence_logits: Tensor | None  # [B, A, K]


@dataclass(frozen=True, slots=True)
class BlockStates:
    """What the logits at the blocks are made from: all of them at once are too large for large vocabularies."""

    network: DrafterNetwork
    blocks: Blocks
    hidden: Tensor  # [B, A, K, d], the drafter's states
    target_logits: Tensor  # [B, T, V], along the text
    autocast: bool

    def parts(self, logits_at_once: int = LOGITS_AT_ONCE) -> Iterator[slice]:
        """The anchors, so many at a time that their logits are at most `logits_at_once`, or one."""
        batch, num_anchors, block_size, _ = self.hidden.shape
        size = max(1, logits_at_once // (batch * block_size * self.target_logits.shape[-1]))
        return (slice(start, start + size) for start in range(0, num_anchors, size))

    def outputs(self, part: slice, hidden: Tensor) -> BlockOutputs:
        """The logits of some anchors from their `hidden` states."""
        blocks = self.blocks.part(anchors=part)
        target_logits = blocks.rows_of(self.target_logits)
        with torch.autocast(hidden.device.type, torch.bfloat16, enabled=self.autocast):
            if isinstance(self.network, Eagle3Network):
                return BlockOutputs(self.network.logits(hidden), target_logits, None)
            logits, confidence_logits = self.network.teacher_forced(hidden, blocks.previous_token_ids)
        return BlockOutputs(logits, target_logits, confidence_logits)


def first_anchor(network: DrafterNetwork) -> int:
    """The first position that can be an anchor: EAGLE-3 needs a token before it, which it continues."""
    return 1 if isinstance(network, Eagle3Network) else 0


def block_states(
    target: CausalModel, network: DrafterNetwork, token_ids: Tensor, blocks: Blocks, *, autocast: bool = False
) -> BlockStates:
    """Read `token_ids` `[B, T]` once with the target, and let the drafter draft the blocks given the true text.

    No valid block has its anchor before `first_anchor`.
    """
    with torch.no_grad(), torch.autocast(token_ids.device.type, torch.bfloat16, enabled=autocast):
        reading = target.read(token_ids, None, layers=network.feature_layers)
    if reading.features is None:
        raise ValueError("the drafter reads no layer of the target; it needs at least one. Give target_layer_ids.")
    features = reading.features.float()
    with torch.autocast(token_ids.device.type, torch.bfloat16, enabled=autocast):
        if isinstance(network, Eagle3Network):
            anchors = blocks.anchors.clamp(min=1)  # of unused blocks
            hidden = network.rolled(features, token_ids, anchors, blocks.previous_token_ids)
        else:
            mask = block_mask(blocks.anchors, num_positions=token_ids.shape[1], block_size=network.block_size)
            hidden = network.packed(features, blocks.previous_token_ids[..., 0], blocks.anchors, mask)
    return BlockStates(network, blocks, hidden, reading.logits, autocast)

"""What the drafter says at the blocks, and what the target says there."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dspark.causal_model import CausalModel
from dspark.checkpoints import DrafterNetwork
from dspark.networks.eagle3 import Eagle3Network
from dspark.training.anchors import Blocks, block_mask


@dataclass(frozen=True, slots=True)
class BlockOutputs:
    """Logits at the blocks of a batch: of the drafter, of the target, and of the confidence head if there is one.

    `valid` `[B, A, K]`: drafts that exist in the text and that the drafter can make.
    """

    draft_logits: Tensor  # [B, A, K, V]
    target_logits: Tensor  # [B, A, K, V]
    confidence_logits: Tensor | None  # [B, A, K]
    valid: Tensor  # [B, A, K]


def block_outputs(
    target: CausalModel, network: DrafterNetwork, token_ids: Tensor, blocks: Blocks, *, autocast: bool = False
) -> BlockOutputs:
    """Read `token_ids` `[B, T]` once with the target, and let the drafter draft the blocks given the true text."""
    with torch.no_grad(), torch.autocast(token_ids.device.type, torch.bfloat16, enabled=autocast):
        reading = target.read(token_ids, None, layers=network.feature_layers)
        target_logits = blocks.rows_of(reading.logits)
    if reading.features is None:
        raise ValueError("the drafter reads no layer of the target; it needs at least one. Give target_layer_ids.")
    features = reading.features.float()
    with torch.autocast(token_ids.device.type, torch.bfloat16, enabled=autocast):
        if isinstance(network, Eagle3Network):
            anchors = blocks.anchors.clamp(min=1)  # the first token has nothing before it to continue
            outputs = network.rolled(features, token_ids, anchors, blocks.previous_token_ids)
            valid = blocks.valid & (blocks.anchors > 0).unsqueeze(-1)
            return BlockOutputs(network.logits(outputs), target_logits, None, valid)
        mask = block_mask(blocks.anchors, num_positions=token_ids.shape[1], block_size=network.block_size)
        hidden = network.packed(features, blocks.previous_token_ids[..., 0], blocks.anchors, mask)
        logits, confidence_logits = network.teacher_forced(hidden, blocks.previous_token_ids)
    return BlockOutputs(logits, target_logits, confidence_logits, blocks.valid)

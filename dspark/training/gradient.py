"""The gradient of the losses, in memory that does not grow with the number of anchors."""

import torch
from torch import Tensor

from dspark.training.losses import Losses, LossWeights, drafter_losses
from dspark.training.outputs import LOGITS_AT_ONCE, BlockStates


def backpropagate(
    states: BlockStates, *, weights: LossWeights, divisor: Tensor, logits_at_once: int = LOGITS_AT_ONCE
) -> Losses:
    """Add the gradient of the losses to that of the network's parameters; returns the losses, without gradient.

    `divisor` as in `drafter_losses`. The logits of a part of the anchors are made, used and dropped before the next part's; what
    they say about the states goes through the backbone in one backward.
    """
    found: list[Losses] = []
    gradients: list[Tensor] = []
    for part in states.parts(logits_at_once):
        hidden = states.hidden[:, part].detach().requires_grad_()
        outputs = states.outputs(part, hidden)
        blocks = states.blocks.part(anchors=part)
        losses = drafter_losses(
            draft_logits=outputs.draft_logits,
            target_logits=outputs.target_logits,
            draft_token_ids=blocks.draft_token_ids,
            valid=blocks.valid,
            confidence_logits=outputs.confidence_logits,
            weights=weights,
            divisor=divisor,
        )
        losses.total.backward()
        assert hidden.grad is not None
        found.append(losses.detach())
        gradients.append(hidden.grad)
    states.hidden.backward(torch.cat(gradients, 1))
    return sum(found[1:], found[0])

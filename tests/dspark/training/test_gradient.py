"""The gradient in parts is the gradient of the whole, and no tensor grows with the number of anchors."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from dspark.causal_model import CausalModel
from dspark.drafters.factory import Kind, new_network
from dspark.training.anchors import Blocks, sample_blocks
from dspark.training.gradient import backpropagate
from dspark.training.losses import Losses, LossWeights, drafter_losses, total_weight
from dspark.training.outputs import block_states, first_anchor
from tests.dspark.conftest import VOCAB_SIZE

Tiny = Callable[..., PreTrainedModel]
WEIGHTS = LossWeights()
B, T, K = 3, 20, 4


class Largest(TorchDispatchMode):
    """Remembers the most memory behind any tensor that an operation returned."""

    num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, Sequence) else [found]:
            if isinstance(each, Tensor):
                self.num_bytes = max(self.num_bytes, each.untyped_storage().nbytes())
        return found


def example(tiny: Tiny, kind: Kind, num_anchors: int = 9, **sizes: int) -> tuple[CausalModel, Any, Tensor, Blocks]:
    target = tiny("qwen3", dtype=torch.float32, initializer_range=0.5, **sizes)
    torch.manual_seed(0)
    rank = {"markov_rank": 8, "markov_head_type": "rnn"} if kind == "dspark" else {}
    shape = {"num_hidden_layers": 1, "block_size": K, "target_layer_ids": (-1, 0), "mask_token_id": 0}
    network = new_network(target, kind=kind, **shape, **rank)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(VOCAB_SIZE, (B, T), generator=generator)
    blocks = sample_blocks(
        token_ids,
        torch.tensor([T, T - 5, T - 9]),
        torch.tensor([1, 2, 3]),
        num_anchors=num_anchors,
        block_size=K,
        generator=generator,
        first_anchor=first_anchor(network),
    )
    return CausalModel.of(target), network, token_ids, blocks


def gradients(network: Any) -> dict[str, Tensor]:
    found = {name: each.grad.clone() for name, each in network.named_parameters() if each.grad is not None}
    network.zero_grad(set_to_none=True)
    return found


def whole(target: CausalModel, network: Any, token_ids: Tensor, blocks: Blocks) -> Losses:
    states = block_states(target, network, token_ids, blocks)
    outputs = states.outputs(slice(None), states.hidden)
    losses = drafter_losses(
        draft_logits=outputs.draft_logits,
        target_logits=outputs.target_logits,
        draft_token_ids=blocks.draft_token_ids,
        valid=blocks.valid,
        confidence_logits=outputs.confidence_logits,
        weights=WEIGHTS,
    )
    losses.total.backward()
    return losses


@pytest.mark.parametrize("kind", ["dspark", "dflash", "eagle3"])
@pytest.mark.parametrize(("anchors_at_once", "rows_at_once"), [(9, 3), (2, 3), (1, 3), (2, 1), (9, 2)])
def test_parts_equal_the_whole(tiny: Tiny, kind: Kind, anchors_at_once: int, rows_at_once: int) -> None:
    target, network, token_ids, blocks = example(tiny, kind)
    expected, wanted = whole(target, network, token_ids, blocks), gradients(network)
    divisor = total_weight(blocks.valid, WEIGHTS.decay)
    found = []
    for start in range(0, B, rows_at_once):
        rows = slice(start, start + rows_at_once)
        states = block_states(target, network, token_ids[rows], blocks.part(rows=rows))
        limit = anchors_at_once * len(token_ids[rows]) * K * VOCAB_SIZE
        assert len(list(states.parts(limit))) == -(-9 // anchors_at_once)
        found.append(backpropagate(states, weights=WEIGHTS, divisor=divisor, logits_at_once=limit))
    losses, given = sum(found[1:], found[0]), gradients(network)
    assert wanted.keys() == given.keys()
    for name, gradient in wanted.items():
        assert (gradient - given[name]).abs().max() <= 1e-6 * gradient.abs().max().clamp(min=1)
    for name in ("total", "cross_entropy", "distance", "confidence", "acceptance", "counts"):
        assert torch.allclose(getattr(losses, name), getattr(expected, name), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "first"), [("dspark", 0), ("dflash", 0), ("eagle3", 1)])
def test_eagle_never_drafts_after_the_first_token(tiny: Tiny, kind: Kind, first: int) -> None:
    blocks = example(tiny, kind, num_anchors=T)[-1]
    assert blocks.anchors[blocks.valid[..., 0]].min() == first


def test_no_tensor_is_larger_than_the_logits_of_one_part(tiny: Tiny) -> None:
    target, network, token_ids, blocks = example(tiny, "dspark", num_anchors=16, vocab_size=1009)
    states = block_states(target, network, token_ids, blocks)
    divisor = total_weight(blocks.valid, WEIGHTS.decay)
    limit = 2 * B * K * 1009
    with Largest() as largest:
        backpropagate(states, weights=WEIGHTS, divisor=divisor, logits_at_once=limit)
    assert largest.num_bytes == 4 * limit

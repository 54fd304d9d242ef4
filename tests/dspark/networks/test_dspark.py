"""The DSpark network against the formulas, packed against incremental, and what each part may depend on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.factory import random_drafter
from dspark.networks.dspark import DSparkNetwork
from dspark.training.anchors import block_mask
from tests.dspark.networks.formulas import block_hidden, draft_logits

Tiny = Callable[..., PreTrainedModel]
HEADS = ("vanilla", "gated", "rnn")


def network_of(tiny: Tiny, dtype: torch.dtype = torch.float64, **choices: Any) -> DSparkNetwork:
    drafter = random_drafter(
        tiny("qwen3"), kind="dspark", dtype=dtype, seed=3, **{"block_size": 4, "target_layer_ids": (-1, 0), **choices}
    )
    assert isinstance(drafter, DSparkDrafter)
    # Norm weights other than 1, else a forgotten or exchanged one would not show.
    generator = torch.Generator().manual_seed(1)
    for name, parameter in drafter.network.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
    return drafter.network


def features_of(network: DSparkNetwork, length: int, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    size = network.config.feature_size
    return torch.randn(rows, length, size, generator=generator, dtype=torch.float64).to(network.fc.weight.dtype)


def incremental(network: DSparkNetwork, features: Tensor, anchor: int) -> Tensor:
    """Hidden states `[K, d]` of one block after a context `[n, F]` that was read in two parts."""
    cut = len(features) // 2
    parts = [
        network.context(features[None, start:end], torch.arange(start, end)[None])
        for start, end in ((0, cut), (cut, len(features)))
    ]
    context = tuple(
        (torch.cat([a[0], b[0]], 2), torch.cat([a[1], b[1]], 2)) for a, b in zip(parts[0], parts[1], strict=True)
    )
    starts = torch.tensor([[len(features)]])
    return network.block(torch.tensor([[anchor]]), starts, context, None)[0, 0]


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("head", HEADS)
def test_formulas(tiny: Tiny, head: str, dtype: torch.dtype, bound: float) -> None:
    network = network_of(tiny, dtype, markov_head_type=head)
    weights = {name: tensor.double() for name, tensor in network.state_dict().items()}
    features = features_of(network, 5)[0]
    previous = [7, 3, 0, 21]
    hidden = block_hidden(weights, network.config, features.double(), previous[0])
    expected, confidences = draft_logits(weights, network.config, hidden, previous)
    ours = incremental(network, features, previous[0])
    assert (ours - torch.stack(hidden)).abs().max() < bound
    logits, confidence_logits = network.teacher_forced(ours, torch.tensor(previous))
    assert (logits - torch.stack(expected)).abs().max() < 10 * bound
    assert confidence_logits is not None
    assert (confidence_logits.sigmoid() - torch.tensor(confidences, dtype=torch.float64)).abs().max() < bound


@torch.no_grad()
@pytest.mark.parametrize(
    "mistake",
    ["no hidden_norm", "oldest context lost", "block one position late", "keys not normed", "causal block"],
)
def test_formulas_see_a_mistake(tiny: Tiny, mistake: str) -> None:
    network = network_of(tiny)
    features = features_of(network, 5)[0]
    wrong = block_hidden(network.state_dict(), network.config, features, 7, mistakes=[mistake])
    assert (incremental(network, features, 7) - torch.stack(wrong)).abs().max() > 1e-4


@torch.no_grad()
def test_packed_blocks_equal_blocks_alone(tiny: Tiny) -> None:
    network = network_of(tiny)
    features = features_of(network, 9, rows=2)
    token_ids = torch.randint(23, (2, 9), generator=torch.Generator().manual_seed(4))
    anchors = torch.tensor([[0, 3, 8], [1, 2, 5]])
    mask = block_mask(anchors, num_positions=9, block_size=4)
    packed = network.packed(features, token_ids.gather(1, anchors), anchors, mask)
    for row in range(2):
        for place, anchor in enumerate(anchors[row].tolist()):
            alone = incremental(network, features[row, :anchor], int(token_ids[row, anchor]))
            assert (packed[row, place] - alone).abs().max() < 1e-12


@torch.no_grad()
def test_a_packed_block_sees_neither_its_anchor_nor_what_follows(tiny: Tiny) -> None:
    network = network_of(tiny)
    features = features_of(network, 9)
    anchors = torch.tensor([[4, 6]])
    mask = block_mask(anchors, num_positions=9, block_size=4)

    def hidden(changed: Tensor) -> Tensor:
        return network.packed(changed, torch.tensor([[1, 2]]), anchors, mask)[0, 0]

    before, after = features.clone(), features.clone()
    before[0, 3] += 1
    after[0, 4:] += 1
    assert (hidden(before) - hidden(features)).abs().max() > 1e-4
    assert (hidden(after) - hidden(features)).abs().max() == 0


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_step_by_step_equals_teacher_forced(tiny: Tiny, head: str) -> None:
    network = network_of(tiny, markov_head_type=head)
    hidden = incremental(network, features_of(network, 5)[0], 7)[None]  # [1, K, d]
    previous = torch.tensor([[7, 3, 0, 21]])
    logits, confidences = network.teacher_forced(hidden, previous)
    assert confidences is not None
    state = None
    for k in range(4):
        ours, confidence, state = network.step(network.lm_head(hidden[:, k]), hidden[:, k], previous[:, k], state)
        assert confidence is not None
        assert (ours - logits[:, k]).abs().max() < 1e-12
        assert (confidence - confidences[:, k]).abs().max() < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_neither_law_nor_confidence_of_a_draft_depends_on_it_or_later_ones(tiny: Tiny, head: str) -> None:
    network = network_of(tiny, markov_head_type=head)
    hidden = incremental(network, features_of(network, 5)[0], 7)
    logits, confidences = network.teacher_forced(hidden, torch.tensor([7, 3, 0, 21]))
    others, other_confidences = network.teacher_forced(hidden, torch.tensor([7, 3, 9, 1]))  # drafts 1 and 2 differ
    assert confidences is not None
    assert other_confidences is not None
    assert torch.equal(logits[:2], others[:2])
    assert torch.equal(confidences[:2], other_confidences[:2])
    assert (logits[2:] - others[2:]).abs().amax(-1).min() > 1e-6
    assert (confidences[2:] - other_confidences[2:]).abs().min() > 1e-6

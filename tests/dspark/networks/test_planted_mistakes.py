"""Mistakes planted in the network itself: each makes it disagree with the formulas, so the comparison has power."""

from collections.abc import Callable
from types import MethodType

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import dspark.networks.attention as attention
from dspark.networks.dspark import DSparkNetwork
from tests.dspark.networks.formulas import block_hidden, draft_logits
from tests.dspark.networks.test_dspark import features_of, incremental, network_of

Tiny = Callable[..., PreTrainedModel]
PREVIOUS = (7, 3, 0, 21)
LENGTH = 5
Plant = Callable[[DSparkNetwork, pytest.MonkeyPatch], None]


def discrepancy(network: DSparkNetwork, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> float:
    """The largest difference from the formulas, over draft logits and confidences, once the mistake is planted."""
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    config = network.config
    features = features_of(network, LENGTH)[0]
    hidden = block_hidden(weights, config, features, PREVIOUS[0])
    expected, expected_confidences = draft_logits(weights, config, hidden, PREVIOUS)
    plant(network, monkeypatch)
    logits, confidences = network.teacher_forced(incremental(network, features, PREVIOUS[0]), torch.tensor(PREVIOUS))
    assert confidences is not None
    apart = (confidences.sigmoid() - torch.tensor(expected_confidences, dtype=torch.float64)).abs().max()
    return max(float((logits - torch.stack(expected)).abs().max()), float(apart))


def nothing(network: DSparkNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""


def no_query_norm(network: DSparkNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in network.layers:
        layer.self_attn.q_norm = nn.Identity()


def no_key_norm(network: DSparkNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in network.layers:
        layer.self_attn.k_norm = nn.Identity()


def norm_after_rotation(network: DSparkNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    rotate = attention.rotate

    def queries(self: attention.Attention, states: Tensor, rotation: attention.Rotation) -> Tensor:
        output: Tensor = self.q_norm(rotate(self._heads(self.q_proj(states)), rotation))
        return output

    monkeypatch.setattr(attention.Attention, "queries", queries)


def interleaved_rotation(network: DSparkNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    rotate = attention.rotate

    def interleaved(states: Tensor, rotation: attention.Rotation) -> Tensor:
        half = states.shape[-1] // 2
        order = torch.arange(2 * half).view(half, 2).T.flatten()  # pairs (0, 1), (2, 3), ... instead of (i, i + D/2)
        return rotate(states[..., order], rotation)[..., order.argsort()]

    monkeypatch.setattr(attention, "rotate", interleaved)


def context_one_position_late(network: DSparkNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    context = network.context
    monkeypatch.setattr(network, "context", lambda features, positions: context(features, positions + 1))


def anchors_own_feature_seen(network: DSparkNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    block = network.block

    def seeing(
        tokens: Tensor, starts: Tensor, context: tuple[attention.KeysValues, ...], mask: Tensor | None
    ) -> Tensor:
        extra = network.context(features_of(network, LENGTH + 1)[:, LENGTH:], starts)
        longer = tuple(
            (torch.cat([old[0], new[0]], 2), torch.cat([old[1], new[1]], 2))
            for old, new in zip(context, extra, strict=True)
        )
        return block(tokens, starts, longer, mask)

    monkeypatch.setattr(network, "block", seeing)


def heads_in_wrong_groups(network: DSparkNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in network.layers:
        weight = layer.self_attn.q_proj.weight
        weight.data = weight.data.view(2, 2, -1, weight.shape[1]).transpose(0, 1).reshape(weight.shape)


def features_in_other_order(network: DSparkNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    width = network.config.hidden_size
    network.fc.weight.data = network.fc.weight.data.roll(width, 1)


def anchor_row_skipped(network: DSparkNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    forced = network.teacher_forced
    monkeypatch.setattr(network, "teacher_forced", lambda hidden, previous: forced(hidden.roll(-1, 0), previous))


def final_norm_forgotten(network: DSparkNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    network.norm = nn.Identity()


def the_draft_itself_read(network: DSparkNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    forced = network.teacher_forced
    monkeypatch.setattr(network, "teacher_forced", lambda hidden, previous: forced(hidden, previous.roll(-1)))


def confidence_of_the_draft_itself(network: DSparkNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    head = network.confidence_head
    monkeypatch.setattr(
        head, "forward", MethodType(lambda self, h, e: self.proj(torch.cat([h, e.roll(-1, 0)], -1)).squeeze(-1), head)
    )


def factors_exchanged(network: DSparkNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    head = network.markov_head
    assert head is not None
    head.markov_w1.weight.data, head.markov_w2.weight.data = head.markov_w2.weight.data, head.markov_w1.weight.data


def chunks_in_other_order(network: DSparkNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    projection = network.markov_head.joint_proj  # type: ignore[union-attr]
    rank = network.config.markov_rank
    projection.weight.data = projection.weight.data.roll(rank, 0)
    projection.bias.data = projection.bias.data.roll(rank, 0)


def state_not_carried(network: DSparkNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    head = network.markov_head
    assert head is not None
    bias = head.bias
    monkeypatch.setattr(head, "bias", lambda previous, hidden, state: bias(previous, hidden, None))


def gate_bias_forgotten(network: DSparkNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    network.markov_head.gate_proj.bias.data.zero_()  # type: ignore[union-attr]


MISTAKES: tuple[tuple[Plant, str], ...] = (
    *(
        (plant, "vanilla")
        for plant in (
            no_query_norm,
            no_key_norm,
            norm_after_rotation,
            interleaved_rotation,
            context_one_position_late,
            anchors_own_feature_seen,
            heads_in_wrong_groups,
            features_in_other_order,
            anchor_row_skipped,
            final_norm_forgotten,
            the_draft_itself_read,
            confidence_of_the_draft_itself,
            factors_exchanged,
        )
    ),
    (gate_bias_forgotten, "gated"),
    (chunks_in_other_order, "rnn"),
    (state_not_carried, "rnn"),
)


def shaped(tiny: Tiny, head: str) -> DSparkNetwork:
    return network_of(tiny, num_attention_heads=4, num_key_value_heads=2, markov_head_type=head)


@torch.no_grad()
@pytest.mark.parametrize(("plant", "head"), MISTAKES, ids=[plant.__name__ for plant, _ in MISTAKES])
def test_a_planted_mistake_is_seen(tiny: Tiny, plant: Plant, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert discrepancy(shaped(tiny, head), plant, monkeypatch) > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("head", ["vanilla", "gated", "rnn"])
def test_nothing_planted_nothing_seen(tiny: Tiny, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert discrepancy(shaped(tiny, head), nothing, monkeypatch) < 1e-9


@torch.no_grad()
def test_a_confidence_head_that_reads_the_hidden_state_alone(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(tiny, confidence_head_with_markov=False)
    assert network.state_dict()["confidence_head.proj.weight"].shape == (1, network.config.hidden_size)
    assert discrepancy(network, nothing, monkeypatch) < 1e-9

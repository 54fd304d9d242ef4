"""The EAGLE-3 network: packed training rolls exactly as decoding does, and looks at nothing later."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dspark.drafters.eagle3 import Eagle3Drafter
from dspark.drafters.factory import random_drafter
from dspark.networks.eagle3 import Eagle3Network

Tiny = Callable[..., PreTrainedModel]
ANCHORS = (1, 4, 7)
K = 4


@pytest.fixture(scope="module")
def network(tiny: Tiny) -> Eagle3Network:
    drafter = random_drafter(tiny("llama"), kind="eagle3", dtype=torch.float64, seed=3, target_layer_ids=(-1, 0))
    assert isinstance(drafter, Eagle3Drafter)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in drafter.network.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return drafter.network


def text_of(network: Eagle3Network, length: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(1, length, network.config.feature_size, generator=generator, dtype=torch.float64)
    return features, torch.randint(23, (1, length), generator=generator)


def rolled(network: Eagle3Network, features: Tensor, token_ids: Tensor) -> Tensor:
    anchors = torch.tensor([ANCHORS])
    places = (anchors.unsqueeze(-1) + torch.arange(K)).clamp(max=token_ids.shape[1] - 1)
    previous = token_ids[0][places]
    return network.rolled(features, token_ids, anchors, previous)[0]  # [A, K, d]


def one_by_one(network: Eagle3Network, features: Tensor, token_ids: Tensor, anchor: int) -> Tensor:
    """Each output from a forward over all entries so far, with a causal mask: no cache, no packing."""
    known = network.fc(features[:, :anchor])  # the anchor itself has not been read by the target
    following = token_ids[0, 1 : anchor + 1].tolist()
    found = []
    for k in range(K):
        count = known.shape[1]
        positions = torch.arange(count)[None]
        tokens = torch.tensor([following])
        causal = torch.ones(count, count, dtype=torch.bool).tril()[None, None]
        entries = network.entries(known, tokens, positions)
        output = network.outputs(entries, entries.keys_values, causal)[:, -1:]
        found.append(output[0, 0])
        known = torch.cat([known, output], 1)
        following.append(int(token_ids[0, min(anchor + 1 + k, token_ids.shape[1] - 1)]))
    return torch.stack(found)


@torch.no_grad()
def test_packed_rolls_as_one_by_one(network: Eagle3Network) -> None:
    features, token_ids = text_of(network)
    packed = rolled(network, features, token_ids)
    for place, anchor in enumerate(ANCHORS):
        assert (packed[place] - one_by_one(network, features, token_ids, anchor)).abs().max() < 1e-12


@torch.no_grad()
def test_what_an_anchor_may_see(network: Eagle3Network) -> None:
    features, token_ids = text_of(network)
    before, at_anchor = features.clone(), features.clone()
    before[0, 3] += 1
    at_anchor[0, 4:] += 1
    original = rolled(network, features, token_ids)[1]
    assert (rolled(network, before, token_ids)[1] - original).abs().max() > 1e-4
    assert torch.equal(rolled(network, at_anchor, token_ids)[1], original)

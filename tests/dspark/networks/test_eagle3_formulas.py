"""The EAGLE-3 network against the formulas: plain loops, one entry, one head, one key at a time; and with planted mistakes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dspark.drafters.eagle3 import Eagle3Drafter
from dspark.drafters.factory import random_drafter
from dspark.networks.config import DrafterConfig
from dspark.networks.eagle3 import Eagle3Layer, Eagle3Network
from tests.dspark.networks.formulas import attention, norm, silu

Tiny = Callable[..., PreTrainedModel]
TEXT = (5, 1, 9, 2, 7)
DRAFTS = (3, 0, 21)


def expected_logits(w: Mapping[str, Tensor], config: DrafterConfig, features: Tensor) -> list[Tensor]:
    """Logits of four drafts after TEXT; the target has read all of it but the anchor, `features` `[4, F]`."""
    eps = config.rms_norm_eps
    entries = [w["fc.weight"] @ row for row in features]
    following = [*TEXT[1:], *DRAFTS]
    logits: list[Tensor] = []
    for _ in range(1 + len(DRAFTS)):
        joined = [
            torch.cat(
                [
                    norm(w["embed_tokens.weight"][token], w["midlayer.input_layernorm.weight"], eps),
                    norm(entry, w["midlayer.hidden_norm.weight"], eps),
                ]
            )
            for entry, token in zip(entries, following, strict=False)
        ]
        last = len(entries) - 1
        attended = attention(w, "midlayer.self_attn.", joined[last:], joined, config, range(len(entries)), last)
        state = entries[last] + attended[0]
        x = norm(state, w["midlayer.post_attention_layernorm.weight"], eps)
        gate, up = w["midlayer.mlp.gate_proj.weight"] @ x, w["midlayer.mlp.up_proj.weight"] @ x
        output = state + w["midlayer.mlp.down_proj.weight"] @ (silu(gate) * up)
        logits.append(w["lm_head.weight"] @ norm(output, w["norm.weight"], eps))
        entries.append(output)
    return logits


def discrepancy(tiny: Tiny, plant: Callable[[Eagle3Network], None], dtype: torch.dtype = torch.float64) -> float:
    drafter = random_drafter(
        tiny("qwen3"),
        kind="eagle3",
        dtype=dtype,
        seed=3,
        target_layer_ids=(-1, 0),
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    assert isinstance(drafter, Eagle3Drafter)
    network = drafter.network
    generator = torch.Generator().manual_seed(1)
    for name, parameter in network.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
    features = torch.randn(1, len(TEXT), network.config.feature_size, generator=generator, dtype=torch.float64)
    weights = {name: tensor.double().clone() for name, tensor in network.state_dict().items()}
    expected = expected_logits(weights, network.config, features[0, :-1].to(dtype).double())
    plant(network)
    previous = torch.tensor([[[TEXT[-1], *DRAFTS]]])
    rolled = network.rolled(features.to(dtype), torch.tensor([TEXT]), torch.tensor([[len(TEXT) - 1]]), previous)
    return float((network.logits(rolled)[0, 0] - torch.stack(expected)).abs().max())


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_formulas(tiny: Tiny, dtype: torch.dtype, bound: float) -> None:
    assert discrepancy(tiny, lambda network: None, dtype) < bound


def without(name: str) -> Callable[[Eagle3Network], None]:
    def plant(network: Eagle3Network) -> None:
        owner, _, child = name.rpartition(".")
        setattr(network.get_submodule(owner), child, nn.Identity())

    return plant


def halves_exchanged(network: Eagle3Network) -> None:
    class Exchanged(Eagle3Layer):
        def join(self, embedded: Tensor, features: Tensor) -> Tensor:
            return super().join(embedded, features).roll(embedded.shape[-1], -1)

    network.midlayer.__class__ = Exchanged


def residual_on_the_embedding(network: Eagle3Network) -> None:
    class Wrong(Eagle3Layer):
        def forward(self, features: Tensor, *attention: Any) -> Tensor:
            return super().forward(self.hidden_norm(features), *attention)

    network.midlayer.__class__ = Wrong


def output_normed_before_it_is_fed_back(network: Eagle3Network) -> None:
    class Wrong(Eagle3Layer):
        def forward(self, features: Tensor, *attention: Any) -> Tensor:
            return network.norm(super().forward(features, *attention))

    network.midlayer.__class__ = Wrong


PLANTS: Sequence[Callable[[Eagle3Network], None]] = (
    without("norm"),
    without("midlayer.hidden_norm"),
    without("midlayer.input_layernorm"),
    without("midlayer.post_attention_layernorm"),
    without("midlayer.self_attn.q_norm"),
    without("midlayer.self_attn.k_norm"),
    halves_exchanged,
    residual_on_the_embedding,
    output_normed_before_it_is_fed_back,
)


@torch.no_grad()
@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_mistake_is_seen(tiny: Tiny, plant: Callable[[Eagle3Network], None]) -> None:
    assert discrepancy(tiny, plant) > 1e-4

"""Begin a drafter as the last layers of its target."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dspark.networks.dspark import DSparkNetwork
from dspark.networks.eagle3 import Eagle3Network

# Small noise keeps the features of the other tapped layers from starting without a gradient of their own.
FUSION_NOISE = 0.005


@torch.no_grad()
def warm_start(network: DSparkNetwork | Eagle3Network, target: PreTrainedModel) -> int:
    """Copy what the target's last layers can give, in place; returns the number of layers that were taken.

    `fc` passes on the features of the last tapped layer and `hidden_norm` is the norm that the target's last layer applies, so
    the keys and values of the context begin as the target's own. A layer is taken where all its parameters fit (heads, widths; a
    Llama-type layer has no head norms, which stay 1). Where none fits, nothing changes but `fc`.
    """
    model: Any = target.base_model
    layers: list[nn.Module] = list(getattr(model, "layers", []))
    size = network.config.hidden_size
    network.fc.weight.normal_(std=FUSION_NOISE)
    network.fc.weight[:, -size:] += torch.eye(size, device=network.fc.weight.device)
    own = [network.midlayer] if isinstance(network, Eagle3Network) else list(network.layers)
    taken = 0
    for ours, theirs in zip(own, layers[-len(own) :], strict=False):
        given: dict[str, Tensor] = dict(theirs.named_parameters())
        if isinstance(network, Eagle3Network):
            given["hidden_norm.weight"] = given.pop("input_layernorm.weight")
            for name in ("q_proj", "k_proj", "v_proj"):  # the feature half of [embedding ; feature]
                weight = given[f"self_attn.{name}.weight"]
                given[f"self_attn.{name}.weight"] = torch.cat([torch.zeros_like(weight), weight], 1)
        taken += _copied(ours, given)
    if taken and isinstance(network, DSparkNetwork):
        last: Any = layers[-1]
        network.hidden_norm.weight.copy_(last.input_layernorm.weight)
    if taken:
        network.norm.weight.copy_(model.norm.weight)
    return taken


def _copied(module: nn.Module, given: Mapping[str, Tensor]) -> bool:
    """Copy parameters of the same name; False, and nothing copied, where one is unknown or of another shape."""
    own = dict(module.named_parameters())
    if any(name not in own or own[name].shape != tensor.shape for name, tensor in given.items()):
        return False
    for name, tensor in given.items():
        own[name].copy_(tensor)
    return True

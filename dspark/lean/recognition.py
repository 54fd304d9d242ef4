"""Which models the short forward computes exactly as they do themselves; any doubt is a no."""

from collections.abc import Hashable

import torch
from torch import nn
from transformers import PreTrainedModel

FAMILIES = {"llama": "Llama", "qwen3": "Qwen3"}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
PLAIN = (nn.Linear, nn.Embedding, nn.ModuleList, nn.SiLU)


def standard_weights(model: PreTrainedModel) -> Hashable | None:
    """What identifies the weights of a Llama or Qwen3 as the library builds it; None for every other model.

    None too where something changes the forward: scaled or partial rotary positions, biases, sliding windows, another
    activation, an attention that someone chose (anything but the default `sdpa`), adapters, quantised or parametrised layers, a
    forward that was replaced, hooks inside the model, several devices, training mode. Hooks on the model itself are fine: the
    short forward calls them. The identity changes when a weight is replaced or written to (weights made in inference mode
    do not tell when they are written to).
    """
    config = model.config
    family = FAMILIES.get(config.model_type, "")
    if not family or type(model).__name__ != f"{family}ForCausalLM" or model.training or model.dtype not in DTYPES:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    layer_types = getattr(config, "layer_types", None) or []
    standard = (
        rope.get("rope_type") == "default"
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        and config.hidden_act == "silu"
        and getattr(config, "pretraining_tp", 1) in (1, None)
        and all(each == "full_attention" for each in layer_types)
        and config._attn_implementation == "sdpa"
        and not {"forward", "_old_forward"} & vars(model).keys()
    )
    return _identity(model, f"transformers.models.{family.lower()}.") if standard else None


def _identity(model: nn.Module, package: str) -> Hashable | None:
    """Walks by hand: `modules()` and `parameters()` cost as much as a forward of a small model."""
    found: list[Hashable] = []
    kinds: set[Hashable] = set()
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if module is not model and not _is_as_built(module, package):
            return None
        for parameter in module._parameters.values():
            if type(parameter) is nn.Parameter:
                version = 0 if parameter.is_inference() else parameter._version
                found.append((id(parameter), parameter.data_ptr(), version))
                kinds.add((parameter.device, parameter.dtype))
            elif parameter is not None:
                return None
        waiting.extend(each for each in module._modules.values() if each is not None)
    return tuple(found) if len(kinds) == 1 else None


def _is_as_built(module: nn.Module, package: str) -> bool:
    kind = type(module)
    return (
        (kind in PLAIN or kind.__module__ == "transformers.activations" or kind.__module__.startswith(package))
        and "forward" not in vars(module)
        and module._parameters.get("bias") is None
        and not module._forward_pre_hooks
        and all(map(_is_passive, module._forward_hooks.values()))
    )


def _is_passive(hook: object) -> bool:
    """The library leaves hooks behind that record outputs where they are asked for; they change nothing."""
    return getattr(hook, "__module__", "") == "transformers.utils.output_capturing"

"""A drafter's network that will not be trained any more, in fewer and faster operations."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from dspark.lean.linear import Linear, joint_linear
from dspark.lean.norm import Norm, rms_norm
from dspark.lean.rotation import Rotation, rotate
from dspark.networks.attention import Attention, GatedMLP, KeysValues, RMSNorm


def pack(network: nn.Module) -> None:
    """Let a network multiply and normalise as the target's short forward does; later changes of its weights have no effect.

    Layers that read the same states become one product. In float64, which is for proofs, everything stays as it is.
    """
    if next(network.parameters()).dtype == torch.float64:
        return
    modules = list(network.modules())
    replaced: set[nn.Module] = set()
    for module in modules:
        if isinstance(module, GatedMLP):
            module.forward = PackedMLP(module)  # type: ignore[method-assign]
            replaced |= set(module.children())
        elif isinstance(module, Attention):
            module.forward = PackedProjection(module)  # type: ignore[method-assign]
            replaced.add(module.q_proj)  # keys and values of a context still have products of their own
        elif isinstance(module, RMSNorm):
            module.forward = rms_norm(module.weight.detach(), module.eps)  # type: ignore[method-assign, assignment]
    for module in modules:
        if type(module) is nn.Linear and module.bias is None and module not in replaced:
            module.forward = joint_linear([module.weight.detach()])


class PackedMLP:
    """See `GatedMLP`."""

    def __init__(self, mlp: GatedMLP) -> None:
        self.gate_up = _joint(mlp.gate_proj, mlp.up_proj)
        self.down = _joint(mlp.down_proj)

    def __call__(self, states: Tensor) -> Tensor:
        """`[..., d]` to the same."""
        gate, up = self.gate_up(states).chunk(2, -1)
        return self.down(functional.silu(gate) * up)


class PackedProjection:
    """See `Attention.forward`."""

    def __init__(self, attention: Attention) -> None:
        self.product = _joint(attention.q_proj, attention.k_proj, attention.v_proj)
        self.head_dim = attention.head_dim
        num_heads, num_key_value_heads = (
            len(each.weight) // attention.head_dim for each in (attention.q_proj, attention.k_proj)
        )
        self.sizes = [num_heads, num_key_value_heads, num_key_value_heads]
        queries, keys = (each.weight.detach() for each in (attention.q_norm, attention.k_norm))
        weights = torch.stack([queries] * num_heads + [keys] * num_key_value_heads).unsqueeze(1)  # [H + H_kv, 1, D]
        self.norm: Norm = rms_norm(weights, attention.q_norm.eps)

    def __call__(self, states: Tensor, rotation: Rotation) -> tuple[Tensor, KeysValues]:
        """Queries, keys and values of `[B, N, input]`."""
        heads = self.product(states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, H + 2 H_kv, N, D]
        rotated, values = heads.split([sum(self.sizes[:2]), self.sizes[2]], 1)
        queries, keys = rotate(self.norm(rotated), rotation).split(self.sizes[:2], 1)
        return queries, (keys, values)


def _joint(*layers: nn.Linear) -> Linear:
    return joint_linear([layer.weight.detach() for layer in layers])

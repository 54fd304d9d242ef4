"""A decoder layer whose queries attend to injected context keys and to each other."""

from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from dspark.grouped_attention import grouped_attention
from dspark.lean.rotation import Rotation, rotate, rotation_of
from dspark.networks.config import DrafterConfig

KeysValues: TypeAlias = tuple[Tensor, Tensor]
"""Keys (rotated) and values, each `[B, H, L, D]`."""


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the mean square in at least float32, as Qwen3 and Llama have it."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, states: Tensor) -> Tensor:
        """`[..., size]` to the same."""
        wide = states.to(torch.promote_types(states.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        output: Tensor = self.weight * wide.to(states.dtype)
        return output


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """`[..., d]` to the same."""
        output: Tensor = self.down_proj(functional.silu(self.gate_proj(states)) * self.up_proj(states))
        return output


class Attention(nn.Module):
    """Grouped-query attention, in two steps: what is asked and kept, and `attend`, when all is kept that may be seen.

    Queries and keys are RMS-normalised per head, then rotated (Qwen3).
    """

    def __init__(self, config: DrafterConfig, input_size: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.theta = config.rope_theta
        self.q_proj = nn.Linear(input_size, config.num_attention_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(input_size, config.num_key_value_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(input_size, config.num_key_value_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def rotation(self, positions: Tensor) -> Rotation:
        """The rotation of `positions` `[B, N]`: `[B, 1, N, D]`, at least float32."""
        dtype = torch.promote_types(self.k_proj.weight.dtype, torch.float32)
        frequencies = frequencies_of(self.theta, self.head_dim, positions.device, dtype)
        return rotation_of(positions.to(dtype)[:, None, :, None] * frequencies)

    def forward(self, states: Tensor, rotation: Rotation) -> tuple[Tensor, KeysValues]:
        """Queries, keys and values of `[B, N, input]`."""
        return self.queries(states, rotation), self.keys_values(states, rotation)

    def queries(self, states: Tensor, rotation: Rotation) -> Tensor:
        """`[B, N, input]` to `[B, H, N, D]`."""
        return rotate(self.q_norm(self._heads(self.q_proj(states))), rotation)

    def keys_values(self, states: Tensor, rotation: Rotation) -> KeysValues:
        """`[B, N, input]` to keys and values `[B, H_kv, N, D]`."""
        keys = rotate(self.k_norm(self._heads(self.k_proj(states))), rotation)
        return keys, self._heads(self.v_proj(states))

    def empty(self, num_rows: int) -> KeysValues:
        """Keys and values of no entries, `[B, H_kv, 0, D]`."""
        weight = self.k_proj.weight
        nothing = weight.new_zeros(num_rows, weight.shape[0] // self.head_dim, 0, self.head_dim)
        return nothing, nothing

    def attend(self, queries: Tensor, keys_values: KeysValues, mask: Tensor | None) -> Tensor:
        """Attention over `[B, H_kv, L, D]`; `mask` `[B, 1, N, L]` is True where visible. Returns `[B, N, d]`."""
        mixed = grouped_attention(queries, *keys_values, mask=mask)
        output: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return output

    def _heads(self, states: Tensor) -> Tensor:
        heads: Tensor = states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, H, N, D]
        return heads


class BlockLayer(nn.Module):
    """Pre-norm layer of the parallel backbone: a block attends to the injected context and to all of itself.

    The context goes through the same `k_proj`, `v_proj` and `k_norm` as the block, but not through `input_layernorm`: it has been
    normalised once, by the network's `hidden_norm` (DFlash: KV injection).
    """

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config, config.hidden_size)
        self.mlp = GatedMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, states: Tensor, rotation: Rotation, context: KeysValues, mask: Tensor | None) -> Tensor:
        """`[B, N, d]` given context keys `[B, H, L, D]`; `mask` `[B, 1, N, L + N]` or None for all."""
        normed = self.input_layernorm(states)
        queries, own = self.self_attn(normed, rotation)
        joined = torch.cat([context[0], own[0]], 2), torch.cat([context[1], own[1]], 2)
        states = states + self.self_attn.attend(queries, joined, mask)
        output: Tensor = states + self.mlp(self.post_attention_layernorm(states))
        return output


@lru_cache(maxsize=16)
def frequencies_of(theta: float, head_dim: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Of the rotation, `[D / 2]`."""
    return theta ** (-torch.arange(0, head_dim, 2, device=device, dtype=dtype) / head_dim)

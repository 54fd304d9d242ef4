"""Rotary positions; halves are paired (i, i + D/2), as in Llama and Qwen3."""

from typing import TypeAlias

import torch
from torch import Tensor

Rotation: TypeAlias = tuple[Tensor, Tensor]
"""Cosines, and sines with the sign that swapped halves need: each broadcasts to the states, `[..., D]`."""


def rotation_of(angles: Tensor) -> Rotation:
    """The rotation by angles `[..., D / 2]`."""
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotate(states: Tensor, rotation: Rotation, *, out: Tensor | None = None) -> Tensor:
    """`[..., D]` rotated, in three operations; `out` may be `states`."""
    cos, sin = (each.to(states.dtype) for each in rotation)
    return torch.addcmul(states * cos, states.roll(states.shape[-1] // 2, -1), sin, out=out)

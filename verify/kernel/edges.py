"""Uniform numbers at the ends of [0, 1): what a sample of any size hardly ever contains."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

Edge = Literal["0", "1 ulp above 0", "1 ulp below 1"]
EDGES: tuple[Edge, ...] = ("0", "1 ulp above 0", "1 ulp below 1")
# Steps of the uniforms that torch draws: 2^-24 in float32, 2^-53 in float64; half types have as many as they have digits.
_STEPS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@dataclass(slots=True)
class Draws:
    """How many uniforms were fixed."""

    count: int = 0


class _FixedTorch(TorchFunctionMode):
    def __init__(self, edge: Edge, draws: Draws) -> None:
        super().__init__()
        self._edge: Edge = edge
        self._draws = draws

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.rand, torch.rand_like):
            result = func(*args, **(kwargs or {}))
            return self._fix(result)
        if func is torch.Tensor.uniform_ and len(args) == 1 and not {"from", "to"} & set(kwargs or {}):
            return self._fix(args[0])
        return func(*args, **(kwargs or {}))

    def _fix(self, uniforms: torch.Tensor) -> torch.Tensor:
        self._draws.count += uniforms.numel()
        return uniforms.fill_(value_of(self._edge, _STEPS[uniforms.dtype]))


def value_of(edge: Edge, step: float) -> float:
    """The uniform at an edge, of a generator with this step."""
    return {"0": 0.0, "1 ulp above 0": step, "1 ulp below 1": 1 - step}[edge]


@contextmanager
def fixed_uniforms(edge: Edge) -> Iterator[Draws]:
    """Inside, `rand`, `rand_like` and `uniform_` of torch, and `random` of Python and numpy, give the edge only.

    Generators of numpy and randomness elsewhere stay as they are: `count` 0 says that nothing was fixed.
    """
    draws = Draws()
    value = value_of(edge, 2.0**-53)

    def plain(*_: Any) -> float:
        draws.count += 1
        return value

    def array(size: Any = None) -> Any:
        fixed = np.full((1,) if size is None else size, value)
        draws.count += fixed.size
        return value if size is None else fixed

    originals = (random.random, np.random.random, np.random.random_sample, np.random.rand)
    try:
        random.random = plain
        np.random.random = np.random.random_sample = array
        np.random.rand = lambda *size: array(size or None)
        with _FixedTorch(edge, draws):
            yield draws
    finally:
        random.random, np.random.random, np.random.random_sample, np.random.rand = originals

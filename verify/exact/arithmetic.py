"""Comparisons of random tensors, which decide them, and monotone arithmetic on them."""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verify.exact.cells import Cell
from verify.exact.lazy import Value, array_of, new_lazy, values_of
from verify.exact.number import LazyNumber
from verify.exact.replay import Replay

_MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}


def compare(replay: Replay, name: str, left: Any, right: Any) -> Tensor:
    """Decide `left <name> right` element by element, in order: a plain boolean tensor."""
    pairs = np.broadcast(values_of(replay, left), values_of(replay, right))
    device = next((each.device for each in (left, right) if isinstance(each, Tensor)), None)
    decided = [_decide(replay, name, *pair) for pair in pairs]
    return torch.tensor(decided, dtype=torch.bool, device=device).reshape(pairs.shape)


def calculate(replay: Replay, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Apply an operation of `add sub rsub mul div rdiv neg log log1p exp reciprocal clamp clamp_min clamp_max`."""
    if name.startswith("clamp"):
        return _clamp(replay, name, *args, **kwargs)
    operands = [*args, *([kwargs["other"]] if "other" in kwargs else [])]
    if len(operands) > 2 or any(value not in (None, 1) for key, value in kwargs.items() if key != "other"):
        replay.refuse(f"{name} of random values with {', '.join(kwargs)}")
    if len(operands) == 1:
        values = values_of(replay, operands[0])
        results = [_apply(name, value) for value in values.ravel()]
        return new_lazy(replay, array_of(results, values.shape), like=operands[0])
    if name in ("rsub", "rdiv"):
        name, operands = name[1:], operands[::-1]
    pairs = np.broadcast(*(values_of(replay, operand) for operand in operands))
    results = [_combine(replay, name, *pair) for pair in pairs]
    plain = [1.0 if isinstance(operand, LazyNumber) else operand for operand in operands]
    with torch._C.DisableTorchFunction():
        dtype = torch.result_type(*plain)
    like = next(operand for operand in plain if isinstance(operand, Tensor))
    return new_lazy(replay, array_of(results, pairs.shape), like=like, dtype=dtype)


def _decide(replay: Replay, name: str, left: Value, right: Value) -> bool:
    if isinstance(left, Cell):
        if left == right:
            return name in ("le", "ge", "eq")
        if isinstance(right, Cell):
            replay.refuse("a comparison of two random values")
        return left.compare(name, right)
    if isinstance(right, Cell):
        return right.compare(_MIRRORED[name], left)
    return bool(getattr(operator, name)(left, right))


def _apply(name: str, value: Value) -> Value:
    if not isinstance(value, Cell):
        function = {"neg": np.negative, "log": np.log, "log1p": np.log1p, "exp": np.exp, "reciprocal": np.reciprocal}
        with np.errstate(all="ignore"):
            return float(function[name](value))
    if name == "neg":
        return value.affine(-1, 0)
    if name == "log1p":
        shifted = value.affine(1, 1)
        return shifted.log() if isinstance(shifted, Cell) else shifted
    return {"log": value.log, "exp": value.exp, "reciprocal": value.reciprocal}[name]()


def _combine(replay: Replay, name: str, left: Value, right: Value) -> Value:
    if not isinstance(left, Cell) and not isinstance(right, Cell):
        function = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}
        with np.errstate(all="ignore"):
            return float(function[name](left, right))
    if isinstance(left, Cell) and isinstance(right, Cell):
        replay.refuse(f"{name} of two random values")
    if isinstance(left, Cell):
        number = float(right)  # type: ignore[arg-type]
        if name == "div" and number == 0:
            low, high = left.ends()
            if low < 0 < high:
                replay.refuse("a random value that can change sign divided by 0")
            return math.inf if high > 0 else -math.inf
        if name == "div":
            return left.affine(1 / number, 0)
        return left.affine(number, 0) if name == "mul" else left.affine(1, number if name == "add" else -number)
    assert isinstance(right, Cell)
    number = float(left)
    if name == "div":
        # Zero over noise is zero: the noise is almost surely neither 0 nor infinite.
        return right.reciprocal().affine(number, 0)
    return right.affine(number, 0) if name == "mul" else right.affine(1 if name == "add" else -1, number)


def _clamp(replay: Replay, name: str, tensor: Any, *bounds: Any, **named: Any) -> Tensor:
    keys = {"clamp": ("min", "max"), "clamp_min": ("min",), "clamp_max": ("max",)}[name]
    given = dict(zip(keys, bounds, strict=False)) | named
    low = -math.inf if given.get("min") is None else float(given["min"])
    high = math.inf if given.get("max") is None else float(given["max"])
    values = values_of(replay, tensor)
    results = [
        each.clamp(low, high) if isinstance(each, Cell) else min(max(each, low), high) for each in values.ravel()
    ]
    return new_lazy(replay, array_of(results, values.shape), like=tensor)

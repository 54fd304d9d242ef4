"""Tensors whose values are known only by interval: what torch's noise becomes during an enumeration."""

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from verify.exact.cells import Cell
from verify.exact.number import LazyNumber
from verify.exact.replay import Replay, operate_on

Value: TypeAlias = Cell | float
Values: TypeAlias = npt.NDArray[np.object_]


@dataclass(slots=True)
class Contents:
    """What a random tensor holds: `store`, shared with its views, and the `index` of its elements there."""

    replay: Replay
    store: list[Value]
    index: npt.NDArray[np.int64]


class LazyTensor(torch.Tensor):
    """A tensor of random values. Its memory holds NaN, so that code which bypasses the dispatch cannot read values."""

    contents: Contents

    @property
    def replay(self) -> Replay:
        """The replay that these values belong to."""
        return self.contents.replay

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Hand every operation to the replay."""
        return operate_on(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"LazyTensor(shape={self.contents.index.shape})"


def array_of(values: Sequence[Value], shape: tuple[int, ...]) -> Values:
    """Arrange cells and numbers as an array of `shape`."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array.reshape(shape)


def values_of(replay: Replay, argument: Any) -> Values:
    """Elements of a random or plain tensor, or of a number, as an array of cells and floats."""
    if isinstance(argument, LazyTensor):
        contents = argument.contents
        return array_of(
            [contents.store[position] for position in contents.index.ravel().tolist()], contents.index.shape
        )
    if isinstance(argument, LazyNumber):
        return array_of([argument.cell], ())
    if isinstance(argument, Tensor):
        return array_of(argument.detach().to(torch.float64).flatten().tolist(), tuple(argument.shape))
    if not isinstance(argument, (int, float, np.number)):
        replay.refuse(f"an operation of random values with a {type(argument).__name__}")
    return array_of([float(argument)], ())


def new_lazy(replay: Replay, values: Values, *, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Build a random tensor of `values`, with the dtype and device of `like` unless `dtype` says otherwise."""
    contents = Contents(replay, values.ravel().tolist(), np.arange(values.size, dtype=np.int64).reshape(values.shape))
    return _build(contents, like, dtype)


def new_view(origin: LazyTensor, index: npt.NDArray[np.int64]) -> Tensor:
    """Build a random tensor of the elements `index` of the store of `origin`, which it shares."""
    contents = origin.contents
    return _build(Contents(contents.replay, contents.store, index), origin)


def _build(contents: Contents, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    with torch._C.DisableTorchFunction():  # `like` may be random itself: reading its dtype would come back here
        tensor = torch.full(contents.index.shape, math.nan, dtype=dtype or like.dtype, device=like.device)
    tensor.__class__ = LazyTensor
    tensor.contents = contents  # type: ignore[attr-defined]
    return tensor


def make_lazy(replay: Replay, tensor: Tensor, values: Sequence[Value]) -> None:
    """Overwrite all elements of `tensor` in place, as an in-place operation does.

    Refused for a plain tensor that shares its memory with another, which would not see the change, and for dtypes coarser
    than float32, where a uniform has too few values to be taken for continuous.
    """
    if isinstance(tensor, LazyTensor):
        for position, value in zip(tensor.contents.index.ravel().tolist(), values, strict=True):
            tensor.contents.store[position] = value
        return
    with torch._C.DisableTorchFunction():
        if type(tensor) is not torch.Tensor or tensor.dtype not in (torch.float32, torch.float64):
            replay.refuse(f"random values in a {type(tensor).__name__} of {tensor.dtype}")
        # One use is the tensor's own, one that of the Python object made here to ask.
        if torch._C._storage_Use_Count(tensor.untyped_storage()._cdata) > 2:
            replay.refuse("random values written into a part or a view of another tensor")
        with torch.no_grad():
            tensor.fill_(math.nan)
        index = np.arange(tensor.numel(), dtype=np.int64).reshape(tuple(tensor.shape))
    tensor.__class__ = LazyTensor
    tensor.contents = Contents(replay, list(values), index)  # type: ignore[attr-defined]
    replay.cleanups.append(_restorer(weakref.ref(tensor)))


def _restorer(reference: "weakref.ref[Tensor]") -> Callable[[], None]:
    """Make a decoder's own buffer a plain tensor again, for the life after the enumeration."""

    def restore() -> None:
        tensor = reference()
        if tensor is not None:
            tensor.__class__ = torch.Tensor

    return restore

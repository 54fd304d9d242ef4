"""What may be done to random tensors, by the name of the torch function; all else is refused by that name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from verify.exact import names
from verify.exact.arithmetic import calculate, compare
from verify.exact.cells import Cell
from verify.exact.lazy import LazyTensor, Values, array_of, make_lazy, new_lazy, new_view, values_of
from verify.exact.number import LazyNumber
from verify.exact.race import draw_winner
from verify.exact.replay import Replay


def operate(replay: Replay, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Apply a torch function of which at least one argument is random, or refuse it by name."""
    name = _name(func)
    try:
        return _apply(replay, name, func, args, kwargs)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        # torch knows more spellings of a call than the models here; that is no error of the program.
        replay.refuse(f"{name} of random values, called in a way that is not modelled ({error})")


def _apply(replay: Replay, name: str, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if name in names.METADATA:
        with torch._C.DisableTorchFunction():
            return func(*args, **kwargs)
    if kwargs.get("out") is not None:
        replay.refuse(f"{name} of random values with out=")
    if name in names.COMPARISONS:
        return compare(replay, names.COMPARISONS[name], *args, **kwargs)
    if name in names.VIEWS or name in names.COPIES:
        return _move(replay, func, args, kwargs, copy=name in names.COPIES)
    if name in names.JOINS:
        return _join(replay, func, *args, **kwargs)
    if name in names.ARITHMETIC:
        return calculate(replay, names.ARITHMETIC[name], args, kwargs)
    if name in names.IN_PLACE:
        return _copy(replay, args[0], calculate(replay, names.IN_PLACE[name], args, kwargs))
    if name in names.CONVERSIONS:
        return _convert(replay, func, args, kwargs)
    special = _SPECIAL.get(name)
    if special is None:
        replay.refuse(f"{name} of random values")
    return special(replay, *args, **kwargs)


def _name(func: Any) -> str:
    name = str(func.__name__)
    if name == "__get__":
        return str(func.__self__.__name__)
    return name.split(".")[0]  # an operator's overload is called "lt.Scalar"


def _move(replay: Replay, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, copy: bool) -> Any:
    """Move elements: what `func` does to their numbers in the store, it does to them."""
    origin, *others = args
    if isinstance(origin, LazyTensor) and func is torch.Tensor.__getitem__ and all(map(_is_plain, _parts(args[1]))):
        return new_view(origin, np.asarray(origin.contents.index[args[1]]))  # by far the most frequent move
    if not isinstance(origin, LazyTensor) or any(isinstance(each, LazyNumber) for each in others):
        replay.refuse(f"{_name(func)} with random values as indices")
    index = torch.from_numpy(origin.contents.index)
    others = [torch.empty(each.shape) if isinstance(each, LazyTensor) else _to_cpu(each) for each in others]
    with torch._C.DisableTorchFunction():
        moved = func(index, *others, **{key: _to_cpu(value) for key, value in kwargs.items()})
    # Indexing with a tensor or a list copies, with numbers and slices it does not.
    copy = copy or (_name(func) == "__getitem__" and any(isinstance(each, (Tensor, list)) for each in _parts(args[1])))

    def wrap(piece: Tensor) -> Tensor:
        view = new_view(origin, piece.numpy())
        return new_lazy(replay, values_of(replay, view), like=view) if copy else view

    if isinstance(moved, Tensor):
        return wrap(moved)
    pieces = [wrap(piece) for piece in moved]
    return iter(pieces) if _name(func) == "__iter__" else tuple(pieces)


def _parts(index: Any) -> Sequence[Any]:
    return index if isinstance(index, tuple) else (index,)


def _is_plain(part: Any) -> bool:
    """Whether a part of an index means the same in numpy and gives a view: a number, or a slice of numbers without a step."""
    if type(part) is slice:
        return part.step is None and type(part.start) in _WHOLE and type(part.stop) in _WHOLE
    return type(part) is int


_WHOLE = (int, type(None))


def _to_cpu(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.cpu()
    return tuple(_to_cpu(each) for each in argument) if isinstance(argument, tuple) else argument


def _join(replay: Replay, func: Any, tensors: Sequence[Any], *args: Any, **kwargs: Any) -> Tensor:
    values = [values_of(replay, tensor) for tensor in tensors]
    starts = np.cumsum([0, *(each.size for each in values)])
    numbers = [
        torch.arange(start, start + each.size).reshape(each.shape) for start, each in zip(starts, values, strict=False)
    ]
    with torch._C.DisableTorchFunction():
        joined = func(numbers, *args, **kwargs)
        dtype = tensors[0].dtype
        for tensor in tensors[1:]:
            dtype = torch.promote_types(dtype, tensor.dtype)
    store = np.concatenate([each.ravel() for each in values])
    return new_lazy(replay, store[joined.numpy()], like=tensors[0], dtype=dtype)


def _convert(replay: Replay, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    origin, *others = args
    if not isinstance(origin, LazyTensor):
        replay.refuse(f"{_name(func)} with a random argument")
    with torch._C.DisableTorchFunction():
        sample = func(torch.empty(0, dtype=origin.dtype, device=origin.device), *others, **kwargs)
    if not isinstance(sample, Tensor) or sample.dtype not in (torch.float32, torch.float64):
        replay.refuse(f"{_name(func)} of random values to {getattr(sample, 'dtype', sample)}")
    if (sample.dtype, sample.device) == (origin.dtype, origin.device):
        return origin
    return new_lazy(replay, values_of(replay, origin), like=sample)


def _copy(replay: Replay, destination: Tensor, source: Any, *_: Any, **__: Any) -> Tensor:
    values = np.broadcast_to(values_of(replay, source), tuple(destination.shape))
    make_lazy(replay, destination, values.ravel().tolist())
    return destination


def _set_item(replay: Replay, destination: Tensor, index: Any, value: Any) -> None:
    if any(isinstance(each, (LazyTensor, LazyNumber)) for each in _parts(index)):
        replay.refuse("__setitem__ with random values as indices")
    values = values_of(replay, destination).copy()
    with torch._C.DisableTorchFunction():
        chosen = torch.arange(values.size).reshape(values.shape)[_to_cpu(index)].numpy()
    values.ravel()[chosen] = values_of(replay, value)
    make_lazy(replay, destination, values.ravel().tolist())


def _where(replay: Replay, condition: Tensor, left: Any, right: Any) -> Tensor:
    if isinstance(condition, LazyTensor):
        replay.refuse("where on a random condition")
    sides = np.broadcast(values_of(replay, condition), values_of(replay, left), values_of(replay, right))
    chosen = [one if flag else other for flag, one, other in sides]
    like = next(each for each in (left, right) if isinstance(each, Tensor))
    return new_lazy(replay, array_of(chosen, sides.shape), like=like)


def _masked_fill(replay: Replay, tensor: Tensor, mask: Tensor, value: Any) -> Tensor:
    return _where(replay, mask, value, tensor)


def _item(replay: Replay, tensor: Tensor) -> LazyNumber | float:
    values = values_of(replay, tensor)
    if values.size != 1:
        raise RuntimeError(f"a Tensor with {values.size} elements cannot be converted to Scalar")
    value = values.ravel()[0]
    return LazyNumber(value) if isinstance(value, Cell) else float(value)


def _to_list(replay: Replay, tensor: Tensor) -> Any:
    def wrap(value: Any) -> Any:
        return [wrap(each) for each in value] if isinstance(value, list) else _number(value)

    return wrap(values_of(replay, tensor).tolist())


def _number(value: Cell | float) -> LazyNumber | float:
    return LazyNumber(value) if isinstance(value, Cell) else value


def _search_sorted(
    replay: Replay,
    boundaries: Tensor,
    values: Any,
    *,
    right: bool = False,
    side: Literal["left", "right"] | None = None,
    sorter: Tensor | None = None,
    out_int32: bool = False,
    **_: Any,
) -> Tensor:
    if isinstance(boundaries, LazyTensor) or sorter is not None:
        replay.refuse("searchsorted in random boundaries or with a sorter")
    cells, edges = values_of(replay, values), values_of(replay, boundaries)
    if edges.ndim > 1:
        edges = np.broadcast_to(edges[..., None, :], (*cells.shape, edges.shape[-1]))
    else:
        edges = np.broadcast_to(edges, (*cells.shape, edges.shape[-1]))
    inclusive = not (right or side == "right")
    found = [
        _bucket(replay, cell, row, inclusive=inclusive)
        for cell, row in zip(cells.ravel(), edges.reshape(-1, edges.shape[-1]), strict=True)
    ]
    dtype = torch.int32 if out_int32 else torch.int64
    return torch.tensor(found, dtype=dtype, device=boundaries.device).reshape(cells.shape)


def _bucketize(
    replay: Replay, values: Any, boundaries: Tensor, *, right: bool = False, out_int32: bool = False
) -> Tensor:
    return _search_sorted(replay, boundaries, values, right=right, out_int32=out_int32)


def _bucket(replay: Replay, value: Cell | float, edges: Values, *, inclusive: bool) -> int:
    ordered = [float(edge) for edge in edges]
    if ordered != sorted(ordered):
        replay.refuse("searchsorted in boundaries that are not sorted")
    for position, edge in enumerate(ordered):
        below = (
            value.below(edge, inclusive=inclusive)
            if isinstance(value, Cell)
            else (value <= edge if inclusive else value < edge)
        )
        if below:
            return position
    return len(ordered)


def _arg_best(replay: Replay, tensor: Tensor, dim: int | None, keepdim: bool, *, name: str, largest: bool) -> Tensor:
    values = values_of(replay, tensor)
    rows = values.ravel() if dim is None else np.moveaxis(values, dim, -1)
    winners = []
    for row in rows.reshape(-1, rows.shape[-1]):
        if any(isinstance(value, Cell) for value in row):
            winners.append(draw_winner(replay, list(row), largest=largest, name=name))
        else:
            winners.append(int(np.argmax(row.astype(float)) if largest else np.argmin(row.astype(float))))
    best = torch.tensor(winners, device=tensor.device).reshape(rows.shape[:-1])
    if keepdim:
        return best.unsqueeze(dim) if dim is not None else best.reshape((1,) * values.ndim)
    return best


def _arg_max(replay: Replay, tensor: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    return _arg_best(replay, tensor, dim, keepdim, name="argmax", largest=True)


def _arg_min(replay: Replay, tensor: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    return _arg_best(replay, tensor, dim, keepdim, name="argmin", largest=False)


def _max(replay: Replay, tensor: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    if not isinstance(dim, int):
        replay.refuse("max of random values without dim")
    indices = _arg_best(replay, tensor, dim, keepdim, name="max", largest=True)
    with torch._C.DisableTorchFunction():
        chosen = indices if keepdim else indices.unsqueeze(dim)
    best = _move(replay, torch.gather, (tensor, dim, chosen), {}, copy=True)
    return torch.return_types.max((best if keepdim else best.squeeze(dim), indices))


_SPECIAL: Mapping[str, Callable[..., Any]] = {
    "copy_": _copy,
    "__setitem__": _set_item,
    "where": _where,
    "masked_fill": _masked_fill,
    "masked_fill_": lambda replay, tensor, mask, value: _copy(
        replay, tensor, _masked_fill(replay, tensor, mask, value)
    ),
    "item": _item,
    "tolist": _to_list,
    "searchsorted": _search_sorted,
    "bucketize": _bucketize,
    "argmax": _arg_max,
    "argmin": _arg_min,
    "max": _max,
}

"""torch's random primitives as choice points, and those without a model by name."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from verify.exact.cells import Cell, Uniform
from verify.exact.lazy import LazyTensor, array_of, make_lazy, new_lazy
from verify.exact.replay import Replay, holds_random

Handler: TypeAlias = Callable[..., Any]
"""Answers a call: (replay, original function, *args, **kwargs)."""

_MOST_INTEGERS = 64


def new_uniform(replay: Replay, dtype: torch.dtype) -> Cell:
    """Draw a uniform on [0, 1) of which nothing is known."""
    if dtype not in (torch.float32, torch.float64):
        replay.refuse(f"a uniform in {dtype}")
    return Cell(Uniform(replay, replay.run, dtype))


def _rand(
    replay: Replay, original: Handler, *size: Any, generator: Any = None, out: Any = None, **kwargs: Any
) -> Tensor:
    if out is not None:
        return _uniform_(replay, original, out)
    return _fresh_uniforms(replay, torch.empty(*size, **kwargs))


def _rand_like(replay: Replay, original: Handler, like: Tensor, *, generator: Any = None, **kwargs: Any) -> Tensor:
    return _fresh_uniforms(replay, torch.empty_like(like, **kwargs))


def _fresh_uniforms(replay: Replay, like: Tensor) -> Tensor:
    cells = [new_uniform(replay, like.dtype) for _ in range(like.numel())]
    return new_lazy(replay, array_of(cells, tuple(like.shape)), like=like)


def _uniform_(
    replay: Replay, original: Handler, tensor: Tensor, *bounds: Any, generator: Any = None, **named: Any
) -> Tensor:
    given = dict(zip(("from", "to"), bounds, strict=False)) | named
    low, high = float(given.get("from", 0.0)), float(given.get("to", 1.0))
    make_lazy(
        replay, tensor, [new_uniform(replay, tensor.dtype).affine(high - low, low) for _ in range(tensor.numel())]
    )
    return tensor


def _exponential_(
    replay: Replay, original: Handler, tensor: Tensor, lambd: float = 1.0, *, generator: Any = None
) -> Tensor:
    cells = [new_uniform(replay, tensor.dtype).log().affine(-1 / float(lambd), 0) for _ in range(tensor.numel())]
    make_lazy(replay, tensor, cells)
    return tensor


def _multinomial(
    replay: Replay,
    original: Handler,
    input: Tensor,  # noqa: A002 - torch's own name
    num_samples: int,
    replacement: bool = False,
    *,
    generator: Any = None,
    out: Any = None,
) -> Tensor:
    if isinstance(input, LazyTensor) or out is not None:
        replay.refuse("multinomial of random probabilities or with out=")
    rows = input.detach().to(torch.float64).reshape(-1, input.shape[-1]).tolist()
    drawn = [_draw_row(replay, row, num_samples, replacement) for row in rows]
    if any(row is None for row in drawn):
        with torch._C.DisableTorchFunction():
            original(input, num_samples, replacement)  # raises torch's own error
        replay.refuse("multinomial of weights that are not a law")
    return torch.tensor(drawn, dtype=torch.int64, device=input.device).reshape(*input.shape[:-1], num_samples)


def _draw_row(replay: Replay, weights: Sequence[float], num_samples: int, replacement: bool) -> list[int] | None:
    """Draw from one row; None where torch raises."""
    left = list(weights)
    if not left or not all(math.isfinite(weight) and weight >= 0 for weight in left):
        return None
    drawn: list[int] = []
    for _ in range(num_samples):
        if not any(left):
            return None
        drawn.append(replay.choose(left, "multinomial"))
        if not replacement:
            left[drawn[-1]] = 0.0
    return drawn


def _bernoulli(
    replay: Replay,
    original: Handler,
    input: Tensor,  # noqa: A002 - torch's own name
    p: float | None = None,
    *,
    generator: Any = None,
    out: Any = None,
) -> Tensor:
    if isinstance(input, LazyTensor) or out is not None:
        replay.refuse("bernoulli of random probabilities or with out=")
    heads = input.tolist() if p is None else torch.full(input.shape, p, dtype=torch.float64).tolist()
    flat = torch.tensor(heads, dtype=torch.float64).flatten().tolist()
    drawn = [replay.choose((1 - each, each), "bernoulli") for each in flat]
    return torch.tensor(drawn, dtype=input.dtype, device=input.device).reshape(input.shape)


def _bernoulli_(replay: Replay, original: Handler, tensor: Tensor, p: Any = 0.5, *, generator: Any = None) -> Tensor:
    probabilities = p.expand(tensor.shape) if isinstance(p, Tensor) else torch.full(tensor.shape, float(p)).double()
    return tensor.copy_(_bernoulli(replay, original, probabilities))


def _randint(
    replay: Replay, original: Handler, *args: Any, generator: Any = None, out: Any = None, **kwargs: Any
) -> Tensor:
    numbers = [each for each in args if isinstance(each, int)]
    low = kwargs.pop("low", numbers[0] if len(numbers) == 2 else 0)
    high = kwargs.pop("high", numbers[-1] if numbers else None)
    size = kwargs.pop("size", args[-1] if args else ())
    if out is not None or high is None or not 0 < high - low <= _MOST_INTEGERS:
        replay.refuse(f"randint over more than {_MOST_INTEGERS} values or with out=")
    result = torch.empty(tuple(size), **({"dtype": torch.int64} | kwargs))
    drawn = [low + replay.choose([1.0] * (high - low), "randint") for _ in range(result.numel())]
    return torch.tensor(drawn, dtype=result.dtype, device=result.device).reshape(result.shape)


def _dropout(
    replay: Replay,
    original: Handler,
    input: Tensor,  # noqa: A002 - torch's own name
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Any:
    if training and p > 0:
        replay.refuse("dropout")
    return original(input, p, training, inplace)


def _constructor(replay: Replay, original: Handler, *args: Any, **kwargs: Any) -> Any:
    """Build a tensor from data: torch would read the NaN behind a random value without asking."""
    if holds_random([*args, *kwargs.values()]):
        replay.refuse(f"{original.__name__} of a random value")
    return original(*args, **kwargs)


def refusing(name: str) -> Handler:
    """Build a handler that refuses by name."""

    def refuse(replay: Replay, original: Handler, *_: Any, **__: Any) -> Any:
        replay.refuse(name)

    return refuse


def _ignored(replay: Replay, original: Handler, *_: Any, **__: Any) -> Any:
    """Leave generators alone: a seed says which of the values is drawn, and all are enumerated."""
    return torch.default_generator


def _reseed(replay: Replay, original: Handler) -> int:
    """Answer `torch.seed()` without a new seed."""
    return torch.initial_seed()


_DRAWING: tuple[tuple[Any, str, Handler], ...] = (
    (torch, "rand", _rand),
    (torch, "rand_like", _rand_like),
    (torch, "multinomial", _multinomial),
    (torch, "bernoulli", _bernoulli),
    (torch, "randint", _randint),
    (torch.Tensor, "uniform_", _uniform_),
    (torch.Tensor, "exponential_", _exponential_),
    (torch.Tensor, "multinomial", _multinomial),
    (torch.Tensor, "bernoulli", _bernoulli),
    (torch.Tensor, "bernoulli_", _bernoulli_),
)
_REFUSED: tuple[tuple[Any, str], ...] = (
    *((torch, name) for name in ("randn", "randn_like", "randint_like", "randperm", "normal", "poisson", "binomial")),
    *((torch.Tensor, name) for name in ("normal_", "random_", "log_normal_", "cauchy_", "geometric_")),
)
_GUARDED: tuple[tuple[Any, str, Handler], ...] = (
    (torch, "tensor", _constructor),
    (torch, "as_tensor", _constructor),
    (torch.Tensor, "new_tensor", _constructor),
    (torch.nn.functional, "dropout", _dropout),
)
_SEEDING: tuple[tuple[Any, str, Handler], ...] = (
    *((torch, name, _ignored) for name in ("manual_seed", "set_rng_state")),
    *((torch.random, name, _ignored) for name in ("manual_seed", "set_rng_state")),
    *((torch.cuda, name, _ignored) for name in ("manual_seed", "manual_seed_all", "set_rng_state")),
    *((owner, "seed", _reseed) for owner in (torch, torch.random)),
)


def drawing_handlers() -> list[tuple[Any, str, Handler]]:
    """List torch's random functions, as (owner, name, handler)."""
    return [*_DRAWING, *((owner, name, refusing(f"torch.{name}")) for owner, name in _REFUSED)]


def guard_handlers() -> list[tuple[Any, str, Handler]]:
    """List functions that are not random themselves: most calls go through to the original."""
    return list(_GUARDED)


def seeding_handlers() -> list[tuple[Any, str, Handler]]:
    """List the functions that seed torch's generators."""
    return list(_SEEDING)

"""Randomness outside torch: Python's `random` and numpy."""

import gc
import pickle
import random
from collections.abc import Callable
from itertools import compress
from typing import Any

import numpy as np
import torch

from verify.exact.number import LazyNumber
from verify.exact.primitives import Handler, new_uniform, refusing
from verify.exact.replay import Replay

_NUMPY_HARMLESS = frozenset({"seed", "get_state", "set_state", "get_bit_generator", "set_bit_generator"})


def _random(replay: Replay, original: Handler, *_: Any) -> LazyNumber:
    return LazyNumber(new_uniform(replay, torch.float64))


def _python_uniform(replay: Replay, original: Handler, low: float, high: float) -> LazyNumber | float:
    return low + (high - low) * _random(replay, original)


def _numpy_random(replay: Replay, original: Handler, *size: Any, **kwargs: Any) -> LazyNumber:
    if size or kwargs:
        replay.refuse("numpy.random with a size")
    return _random(replay, original)


def _ignored(replay: Replay, original: Handler, *_: Any, **__: Any) -> None:
    """Leave the generator alone, as in torch."""


class _RefusedGenerator:
    """Stands for a numpy generator made during a run: seeding is free, a draw is refused by name."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay

    def random(self, *size: Any, **kwargs: Any) -> LazyNumber:
        """Draw one uniform."""
        return _numpy_random(self._replay, self.random, *size, **kwargs)

    def __getattr__(self, name: str) -> Any:
        self._replay.refuse(f"numpy.random.Generator.{name}")


def _default_rng(replay: Replay, original: Handler, *_: Any, **__: Any) -> Any:
    return _RefusedGenerator(replay)


def other_handlers() -> list[tuple[Any, str, Handler]]:
    """Every function to intercept, as (owner, name, handler).

    Methods of `random.Random` are replaced on the class: `choices` is then modelled through `random`, and `randint`,
    `choice`, `shuffle` and `sample` are refused through `getrandbits`.
    """
    of_numpy = [
        name
        for name, each in vars(np.random).items()
        if getattr(each, "__self__", None) is np.random.mtrand._rand and name not in _NUMPY_HARMLESS
    ]
    modelled = ("random", "random_sample", "rand")
    return [
        (random, "random", _random),
        (random.Random, "random", lambda replay, original, self: _random(replay, original)),
        (random, "uniform", _python_uniform),
        (
            random.Random,
            "uniform",
            lambda replay, original, self, low, high: _python_uniform(replay, original, low, high),
        ),
        (random, "getrandbits", refusing("random.getrandbits")),
        (random.Random, "getrandbits", refusing("an integer drawn with Python's random")),
        (random.SystemRandom, "random", refusing("random.SystemRandom")),
        (random.SystemRandom, "getrandbits", refusing("random.SystemRandom")),
        (random, "seed", _ignored),
        (np.random, "seed", _ignored),
        (np.random, "default_rng", _default_rng),
        *((np.random, name, _numpy_random) for name in modelled),
        *((np.random, name, refusing(f"numpy.random.{name}")) for name in of_numpy if name not in modelled),
    ]


class NumpyGenerators:
    """numpy's generators among all live objects, for many enumerations in one process.

    The usual imports leave half a million objects. Those that exist when this one is made are looked through once, and then
    moved to the permanent generation of Python's garbage collector, which its list of objects leaves out.
    """

    def __init__(self) -> None:
        gc.unfreeze()  # what others have moved there was not looked through
        gc.collect()
        self._old = _numpy_generators()
        gc.freeze()

    def find(self) -> list[Any]:
        """All that exist now, the oldest first."""
        return [*self._old, *_numpy_generators()]


def _numpy_generators() -> list[Any]:
    objects = gc.get_objects()
    kinds = {np.random.Generator, np.random.RandomState}
    return list(compress(objects, map(kinds.__contains__, map(type, objects))))  # no loop in Python over so many


def generator_states(generators: NumpyGenerators | None = None) -> dict[str, Callable[[], object]]:
    """Ways to read the state of every generator that exists and is not intercepted, by name.

    A change over a run is a draw that was not seen. numpy's generators are found among all live objects.
    """
    states: dict[str, Callable[[], object]] = {
        "torch's default generator": lambda: torch.get_rng_state().numpy().tobytes(),
        "Python's random": random.getstate,
        "numpy.random": lambda: pickle.dumps(np.random.get_state()),
    }
    if torch.cuda.is_initialized():
        for index, generator in enumerate(torch.cuda.default_generators):
            states[f"torch's generator of cuda:{index}"] = lambda each=generator: each.get_state().numpy().tobytes()  # type: ignore[misc]
    if generators is None:
        gc.unfreeze()
    for index, each in enumerate(generators.find() if generators else _numpy_generators()):
        if type(each) is np.random.Generator:
            states[f"a numpy.random.Generator ({index})"] = lambda each=each: pickle.dumps(each.bit_generator.state)  # type: ignore[misc]
        elif each is not np.random.mtrand._rand:
            states[f"a numpy.random.RandomState ({index})"] = lambda each=each: pickle.dumps(each.get_state())  # type: ignore[misc]
    return states

"""Put choice points in the place of random functions, and notice every draw that got past them."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from verify.exact.elsewhere import generator_states, other_handlers
from verify.exact.primitives import Handler, drawing_handlers, guard_handlers, seeding_handlers
from verify.exact.replay import Replay

Result = TypeVar("Result")

# Replaced functions cost nothing per torch call, but miss a reference that was taken before (`from torch import
# multinomial`). A function mode sees those too, and costs about 1 us per torch call: so it watches one run in so many,
# and every run once it has found something.
_WATCHED_EVERY = 16
_ABSENT = object()


class Interception:
    """The random functions of torch, numpy and Python, replaced for the duration of `installed`."""

    def __init__(self, replay: Replay) -> None:
        self.replay = replay
        self.always_watched = False
        self._handlers = [*drawing_handlers(), *guard_handlers(), *seeding_handlers(), *other_handlers()]
        self._states = generator_states()
        self._mode = _Watch(replay, drawing=_by_function(drawing_handlers()), guarded=_by_function(guard_handlers()))

    def call(self, run: Callable[[], Result]) -> Result:
        """Execute one run; sets `replay.refused` if a generator moved without a choice point."""
        before = {name: read() for name, read in self._states.items()}
        if self.always_watched or self.replay.run % _WATCHED_EVERY == 1:
            with self._mode:
                result = run()
        else:
            result = run()
        for name, read in self._states.items():
            if read() != before[name]:
                self.replay.refused = self.replay.refused or f"a random draw that was not intercepted ({name} moved)"
        return result

    def must_restart(self) -> bool:
        """Whether a held reference to a random function was found while runs went unwatched."""
        if self.always_watched or not self._mode.found:
            return False
        self.always_watched = True
        return True

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Replace the functions, and put them back.

        torch runs on one thread meanwhile: on tiny tensors a second one only costs, ten times over on a busy machine.
        """
        kept: list[tuple[Any, str, Any]] = []
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for owner, name, handler in self._handlers:
                original = getattr(owner, name)
                kept.append((owner, name, vars(owner).get(name, _ABSENT)))
                setattr(owner, name, _replacement(self.replay, original, handler))
            yield
        finally:
            for owner, name, before in reversed(kept):
                if before is _ABSENT:
                    delattr(owner, name)
                else:
                    setattr(owner, name, before)
            torch.set_num_threads(num_threads)
            self.replay.close()


class _Watch(TorchFunctionMode):
    """Sees every torch function in its thread; answers random ones that were reached through an older reference."""

    def __init__(self, replay: Replay, *, drawing: dict[Any, Handler], guarded: dict[Any, Handler]) -> None:
        super().__init__()
        self.found = False
        self._replay = replay
        self._drawing = drawing
        self._handlers = drawing | guarded

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = self._handlers.get(func)
        if handler is not None:
            self.found |= func in self._drawing
            return handler(self._replay, func, *args, **(kwargs or {}))
        if _is_random_operator(func):
            self._replay.refuse(str(func))
        return func(*args, **(kwargs or {}))


def _by_function(handlers: list[tuple[Any, str, Handler]]) -> dict[Any, Handler]:
    return {getattr(owner, name): handler for owner, name, handler in handlers}


def _is_random_operator(func: Any) -> bool:
    """Whether `func` is of `torch.ops` and draws; an operator without overload counts if one of its overloads does."""
    if type(func) is torch._ops.OpOverload:
        return torch.Tag.nondeterministic_seeded in func.tags
    if type(func) is torch._ops.OpOverloadPacket:
        return any(_is_random_operator(getattr(func, name)) for name in func.overloads())  # type: ignore[no-untyped-call]
    return False


def _replacement(replay: Replay, original: Any, handler: Handler) -> Any:
    @functools.wraps(original, updated=())
    def replacement(*args: Any, **kwargs: Any) -> Any:
        return handler(replay, original, *args, **kwargs)

    return replacement

"""Put choice points in the place of random functions, and notice every draw that got past them."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from verify.exact.elsewhere import NumpyGenerators, generator_states, other_handlers
from verify.exact.lazy import LazyTensor
from verify.exact.primitives import Handler, drawing_handlers, guard_handlers, seeding_handlers
from verify.exact.replay import Replay, operate_on

Result = TypeVar("Result")
_ABSENT = object()

# Two nets. Replaced functions catch calls in every thread and inside torch's own Python code. A function mode catches, in
# this thread, calls through references taken before (`from torch import multinomial`). It costs about 1 us per torch call.


class Interception:
    """The random functions of torch, numpy and Python, replaced for the duration of `installed`.

    `generators` knows numpy's generators from earlier interceptions, which saves looking for them again.
    """

    def __init__(self, replay: Replay, *, generators: NumpyGenerators | None = None) -> None:
        self.replay = replay
        self._handlers = [*drawing_handlers(), *guard_handlers(), *seeding_handlers(), *other_handlers()]
        self._states = generator_states(generators)
        self._known: dict[str, object] = {}
        self._watch = _Watch(replay, [*drawing_handlers(), *guard_handlers()])

    def call(self, run: Callable[[], Result]) -> Result:
        """Execute one run; sets `replay.refused` if a generator moved since `installed`, or the run before, unseen."""
        with self._watch:
            result = run()
        for name, read in self._states.items():
            state = read()
            if state != self._known[name]:
                self.replay.refused = self.replay.refused or f"a random draw that was not intercepted ({name} moved)"
            self._known[name] = state
        return result

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
            self._known = {name: read() for name, read in self._states.items()}
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

    def __init__(self, replay: Replay, handlers: list[tuple[Any, str, Handler]]) -> None:
        super().__init__()
        self._replay = replay
        self._handlers = {getattr(owner, name): handler for owner, name, handler in handlers}
        self._harmless: set[Any] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._harmless:  # nearly always: keep this path short
            if LazyTensor in types:  # what its own dispatch would do, without another way through torch
                return operate_on(func, args, kwargs or {})
            return func(*args, **kwargs) if kwargs else func(*args)
        handler = self._handlers.get(func)
        if handler is not None:
            return handler(self._replay, func, *args, **(kwargs or {}))
        if _is_random_operator(func):
            self._replay.refuse(str(func))
        self._harmless.add(func)
        return func(*args, **(kwargs or {}))


def _is_random_operator(func: Any) -> bool:
    """Whether `func` is of `torch.ops` and draws; an operator without overload counts if one of its overloads does."""
    if type(func) is torch._ops.OpOverload:
        return torch.Tag.nondeterministic_seeded in func.tags
    if type(func) is torch._ops.OpOverloadPacket:
        return any(_is_random_operator(getattr(func, name)) for name in func.overloads())
    return False


def _replacement(replay: Replay, original: Any, handler: Handler) -> Any:
    @functools.wraps(original, updated=())
    def replacement(*args: Any, **kwargs: Any) -> Any:
        return handler(replay, original, *args, **kwargs)

    return replacement

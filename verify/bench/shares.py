"""Where the time goes: the target's forwards, drafting, the laws, and everything else. Seen from outside, for any adapter.

Measured in a run of its own, because looking costs time: hooks on modules and, between them, on every call of torch.
"""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from verify.bench.clock import Clock
from verify.models.observer import cached_length
from verify.protocol import ModelPair

PARTS = ("prefill", "verify", "draft", "sampling", "bookkeeping")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Seconds of one instrumented run by part, and the number of the target's forwards after the prompts'.

    prefill and verify: the target's forwards into an empty cache, and all later ones. draft: other modules. sampling: calls of
    torch outside of modules on tensors whose last dimension is the vocabulary. bookkeeping: the rest, Python included.
    """

    seconds: Mapping[str, float]
    num_verifications: int

    @property
    def total(self) -> float:
        """Of the whole run."""
        return sum(self.seconds.values())


def measure_shares(work: Callable[[], object], models: ModelPair, *, clock: Clock) -> Spent:
    """Run `work` once, looking."""
    watch = _Watch(clock=clock, vocab_size=models.vocab_size)
    with _hooks(watch, models), _Laws(watch):
        started = clock.now()
        work()
        total = clock.now() - started
    watch.seconds["bookkeeping"] = max(0.0, total - sum(watch.seconds.values()))
    return Spent(seconds=watch.seconds, num_verifications=watch.num_verifications)


class _Watch:
    """Attributes the time of outermost modules; what happens inside of one is its own."""

    def __init__(self, *, clock: Clock, vocab_size: int) -> None:
        self.clock = clock
        self.vocab_size = vocab_size
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.num_verifications = 0
        self.depth = 0
        self._part = ""
        self._started = 0.0

    def enter(self, role: str, _: nn.Module, __: Any, keywords: Mapping[str, Any]) -> None:
        """Before a forward of a module in a role, target or draft."""
        if self.depth == 0:
            self._part = "draft" if role != "target" else "verify" if cached_length(keywords) else "prefill"
            self.num_verifications += self._part == "verify"
            self._started = self.clock.now()
        self.depth += 1

    def leave(self, *_: Any) -> None:
        """After a forward."""
        self.depth -= 1
        if self.depth == 0:
            self.seconds[self._part] += self.clock.now() - self._started


class _Laws(TorchFunctionMode):
    """Times the calls of torch outside of modules that handle rows over the vocabulary."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.watch.depth:
            return func(*args, **(kwargs or {}))
        started = self.watch.clock.now()
        result = func(*args, **(kwargs or {}))
        if self._is_law(result) or any(map(self._is_law, args)):
            self.watch.seconds["sampling"] += self.watch.clock.now() - started
        return result

    def _is_law(self, value: object) -> bool:
        if isinstance(value, Tensor):
            return value.ndim > 0 and value.shape[-1] == self.watch.vocab_size
        return isinstance(value, tuple | list) and any(
            isinstance(each, Tensor) and self._is_law(each) for each in value
        )


@contextmanager
def _hooks(watch: _Watch, models: ModelPair) -> Iterator[None]:
    """On the target, the draft model, and all modules that belong to neither: a drafter's parts may be called one by one.

    A hook knows the role that it was registered for: a decoder may call a shallow copy of a model, which shares its hooks.
    """
    known = {id(part._modules) for model in (models.target, models.draft) for part in model.modules()}
    found = [each for each in gc.get_objects() if issubclass(type(each), nn.Module)]
    watched: list[tuple[str, nn.Module]] = [("target", models.target)]
    watched += [("draft", models.draft)] if models.draft is not models.target else []
    watched += [("draft", each) for each in found if id(each.__dict__.get("_modules")) not in known]
    handles: list[RemovableHandle] = []
    for role, module in watched:
        handles.append(module.register_forward_pre_hook(partial(watch.enter, role), with_kwargs=True))
        handles.append(module.register_forward_hook(watch.leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

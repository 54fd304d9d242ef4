"""The paired loop: all contestants in turn on the same work, A B A B ..., so that a slow moment hits all of them."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from verify.bench.clock import Clock

Task = Callable[[int], object]
"""Does the work of turn n."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to measure: until `seconds` have passed, within the two bounds on the number of turns."""

    seconds: float
    at_least: int = 5
    at_most: int = 30


def interleave(tasks: Mapping[str, Task], *, clock: Clock, patience: Patience) -> dict[str, list[float]]:
    """Seconds of every task in every turn; each task runs once before, unmeasured.

    The garbage collector works between the measurements and not in them.
    """
    for task in tasks.values():
        task(0)
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    collecting = gc.isenabled()
    gc.collect()
    gc.freeze()  # what lives by now need not be looked through before every turn
    gc.disable()
    began = clock.now()
    try:
        for turn in range(patience.at_most):
            if turn >= patience.at_least and clock.now() - began >= patience.seconds:
                break
            for name, task in tasks.items():
                gc.collect()
                started = clock.now()
                task(turn)
                seconds[name].append(clock.now() - started)
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
    return seconds

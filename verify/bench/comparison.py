"""Two stored races against each other: has the decoder become slower?"""

from collections.abc import Sequence
from dataclasses import dataclass

from verify.bench.intervals import independent_ratio
from verify.bench.schema import BenchResults, Estimate, Speed

MACHINE = ("processor", "cpus", "threads", "torch", "gpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How many times the new speed is the old, at one concurrency.

    `relative` compares the speed-ups over the baseline, which was timed in the same turns: the machine's mood cancels, and so
    does a change of both. `absolute` compares tokens a second, and means something on the same quiet machine only.
    """

    concurrency: int
    relative: Estimate
    absolute: Estimate


def compare(old: BenchResults, new: BenchResults) -> list[Change]:
    """Changes at the concurrencies of both, of one decoder or of two through one baseline.

    Raises ValueError (value, rule, remedy) where the races are not about the same work.
    """
    for name, (theirs, ours) in {
        "baseline": (old.baseline, new.baseline),
        "models": (old.models.name, new.models.name),
        "device": (old.models.device, new.models.device),
        "dtype": (old.models.dtype, new.models.dtype),
        "tokens a request": (old.settings.max_new_tokens, new.settings.max_new_tokens),
        "temperature": (old.settings.temperature, new.settings.temperature),
    }.items():
        if theirs != ours:
            raise ValueError(
                f"{name} is {theirs!r} in one race and {ours!r} in the other; both must be the same. Race again."
            )
    before = {speed.concurrency: speed for speed in old.speed}
    common = [(before[speed.concurrency], speed) for speed in new.speed if speed.concurrency in before]
    if not common:
        raise ValueError("the races have no concurrency in common; there is nothing to compare. Race again.")
    return [
        Change(
            concurrency=after.concurrency,
            relative=independent_ratio(_ratios(new, after, first.baseline), _ratios(old, first, first.baseline)),
            absolute=independent_ratio(_rates(new, after), _rates(old, first)),
        )
        for first, after in common
    ]


def differences(old: BenchResults, new: BenchResults) -> list[str]:
    """What about the machines or versions is not the same; absolute speeds then mean nothing."""
    found = [(name, old.environment.get(name), new.environment.get(name)) for name in MACHINE]
    return [f"{name}: {before} and {after}" for name, before, after in found if before != after]


def _rates(results: BenchResults, speed: Speed) -> list[float]:
    return [speed.tokens_per_turn / seconds for seconds in speed.seconds[results.decoder]]


def _ratios(results: BenchResults, speed: Speed, baseline: str) -> Sequence[float]:
    """Speed-ups by turn over the contestant that counted in the older race, or over the one that does where it is gone."""
    theirs = speed.seconds.get(baseline, speed.seconds[speed.baseline])
    return [slow / fast for slow, fast in zip(theirs, speed.seconds[results.decoder], strict=True)]

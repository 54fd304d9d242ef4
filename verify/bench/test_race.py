"""The measurements of a race, one test each; a gate that does not hold is a failure."""

import pytest

from verify.bench.options import BenchOptions
from verify.bench.race import Race


def test_speed(race: Race, bench_options: BenchOptions, concurrency: int) -> None:
    """Tokens a second, in paired turns; with `--fail-below` the lower end of the speed-up must reach it."""
    speed = race.measure_speed(concurrency)
    ratio = speed.speed_up[speed.baseline]
    least = bench_options.fail_below
    if least is not None and ratio.low < least:
        pytest.fail(
            f"speed-up over {speed.baseline} at concurrency {concurrency} is {ratio.estimate:.3f} [{ratio.low:.3f}, "
            f"{ratio.high:.3f}]; its lower end must reach {least:g}",
            pytrace=False,
        )


def test_latency(race: Race) -> None:
    """Time to the first token, time per later token, time between chunks."""
    race.measure_latency()


def test_acceptance(race: Race) -> None:
    """Tokens a round, acceptance by position, target forwards a token."""
    race.measure_acceptance()


def test_shares(race: Race) -> None:
    """Where the time goes, and the distance to the machine's limit."""
    race.measure_shares()


def test_memory(race: Race) -> None:
    """The most memory held at once."""
    race.measure_memory()

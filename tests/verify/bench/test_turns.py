"""The paired loop and its intervals: order, warm-up, drift, coverage, and a planted slowdown."""

import gc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from verify.bench.contestant import Contestant
from verify.bench.intervals import independent_ratio, paired_ratio, share_of
from verify.bench.latency import measure_latencies
from verify.bench.turns import Patience, interleave
from verify.protocol import Request

REQUEST = Request(prompt_token_ids=(1, 2), max_new_tokens=10)


def test_contestants_alternate_and_the_first_time_does_not_count(clock: Any) -> None:
    order: list[str] = []

    def task(name: str, seconds: float) -> Any:
        def work(turn: int) -> None:
            order.append(f"{name}{turn}")
            clock.pass_by(seconds if len(order) > 2 else 100 * seconds)

        return work

    found = interleave(
        {"a": task("a", 1.0), "b": task("b", 2.0)}, clock=clock, patience=Patience(seconds=6.5, at_least=2)
    )
    assert order == ["a0", "b0", *[f"{name}{turn}" for turn in range(3) for name in "ab"]]
    assert found == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert gc.isenabled()


def test_a_slow_moment_of_the_machine_leaves_the_ratio_as_it_is(clock: Any) -> None:
    def task(seconds: float) -> Any:
        return lambda turn: clock.pass_by(seconds * (1 + turn % 4))

    found = interleave({"slow": task(2.0), "fast": task(1.0)}, clock=clock, patience=Patience(seconds=0, at_least=8))
    ratio = paired_ratio(found["slow"], found["fast"])
    assert ratio.low == pytest.approx(2.0)
    assert ratio.high == pytest.approx(2.0)


def test_turns_stop_at_the_bounds(clock: Any) -> None:
    found = interleave({"a": lambda turn: clock.pass_by(1)}, clock=clock, patience=Patience(seconds=1e9, at_most=7))
    assert len(found["a"]) == 7


def test_equal_decoders_give_an_interval_that_covers_one() -> None:
    random = np.random.default_rng(0)
    misses = 0
    for _ in range(1000):
        mood = random.lognormal(0, 0.5, 8)  # the machine's, which both feel
        first, second = (mood * random.lognormal(0, 0.05, 8) for _ in range(2))
        ratio = paired_ratio(list(first), list(second))
        misses += not ratio.low <= 1 <= ratio.high
    low, high = share_of(misses, 1000).low, share_of(misses, 1000).high
    assert low <= 0.05 <= high
    assert ratio.high / ratio.low < 1.3  # although single times vary by half


def test_a_slowdown_of_two_is_seen(numbers: SimpleNamespace) -> None:
    ratio = paired_ratio(numbers.turns(2.0, seed=1), numbers.turns(1.0, seed=2))
    assert 1.8 < ratio.low < 2 < ratio.high < 2.2
    ratio = independent_ratio(numbers.turns(2.0, seed=1), numbers.turns(1.0, seed=2))
    assert 1.8 < ratio.low < 2 < ratio.high < 2.2


def test_one_turn_has_no_interval() -> None:
    with pytest.raises(ValueError, match="1 turns; an interval needs at least 2"):
        paired_ratio([1.0], [1.0])
    with pytest.raises(ValueError, match="1 turns; an interval needs at least 2"):
        independent_ratio([1.0, 1.0], [1.0])


def test_only_a_decoder_that_claims_batches_gets_them(clock: Any, sleepy: Any) -> None:
    for claimed, calls in ((True, [4, 2]), (False, [1] * 6)):
        decoder = sleepy(clock, batch=claimed)
        Contestant(name="x", decoder=decoder, num_draft_tokens=3).decode([REQUEST] * 6, concurrency=4)
        assert decoder.calls == calls


def test_work_of_another_length_is_refused(clock: Any, sleepy: Any) -> None:
    class Short(sleepy):  # type: ignore[misc]
        def generate(self, requests: Any) -> Any:
            answers = super().generate(requests)
            answers[0].token_ids.pop()
            return answers

    with pytest.raises(ValueError, match="x emitted 9 tokens where 10 were asked for"):
        Contestant(name="x", decoder=Short(clock), num_draft_tokens=3).decode([REQUEST], concurrency=1)


@pytest.mark.parametrize("streaming", [True, False])
def test_latencies_are_those_of_the_decoder(clock: Any, sleepy: Any, streaming: bool) -> None:
    decoder = sleepy(clock, prompt_s=5.0, token_s=0.5, chunk=2, streaming=streaming)
    contestant = Contestant(name="x", decoder=decoder, num_draft_tokens=3)
    found = measure_latencies([contestant], [REQUEST] * 3, clock=clock)["x"]
    assert found.streamed is streaming
    assert found.first == pytest.approx([6.0 if streaming else 5.5] * 3)  # a first chunk of two tokens, or one token
    assert found.per_token == pytest.approx([0.5] * 3)
    assert found.chunks == pytest.approx([1.0] * 12 if streaming else [])

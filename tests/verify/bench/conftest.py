"""A clock that moves only when told, decoders that take a known time, and a whole race made of numbers."""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from verify.bench.schema import BenchResults, Estimate, Models, Settings, Speed, Standing
from verify.protocol import Capabilities, Generation, Request


class FakeClock:
    """Seconds that pass only in `pass_by`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds


class SleepyDecoder:
    """Takes `prompt_s` for a call and `token_s` for each token; streams `chunk` tokens at a time."""

    def __init__(
        self, clock: FakeClock, *, prompt_s: float = 0.0, token_s: float = 1.0, chunk: int = 2, **claims: Any
    ) -> None:
        self.clock = clock
        self.prompt_s, self.token_s, self.chunk = prompt_s, token_s, chunk
        self.capabilities = Capabilities(greedy=True, **claims)
        self.calls: list[int] = []

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        self.calls.append(len(requests))
        self.clock.pass_by(self.prompt_s + self.token_s * requests[0].max_new_tokens)
        return [Generation(token_ids=[1] * each.max_new_tokens, finish_reason="length") for each in requests]

    def stream(self, request: Request) -> Iterator[list[int]]:
        self.clock.pass_by(self.prompt_s)
        left = request.max_new_tokens
        while left:
            size = min(self.chunk, left)
            self.clock.pass_by(self.token_s * size)
            left -= size
            yield [1] * size


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def sleepy() -> type[SleepyDecoder]:
    return SleepyDecoder


def turns(factor: float, *, seed: int, num: int = 12, noise: float = 0.05) -> list[float]:
    """Seconds that are `factor` but for noise."""
    numbers = random.Random(seed)
    return [factor * numbers.lognormvariate(0.0, noise) for _ in range(num)]


def race_of(ours: Sequence[float], theirs: Sequence[float], **changes: Any) -> BenchResults:
    """A stored race with these seconds."""
    some = Estimate(low=0.9, estimate=1.0, high=1.1)
    speed = Speed(
        concurrency=1,
        requests_per_turn=4,
        tokens_per_turn=256,
        batched={"mine": True, "theirs": False},
        seconds={"mine": list(ours), "theirs": list(theirs)},
        tokens_per_s={"mine": some, "theirs": some},
        tokens_per_s_per_user={"mine": 1.0, "theirs": 1.0},
        speed_up={"theirs": some},
        baseline="theirs",
        identical_outputs={"theirs": "4 of 4"},
    )
    given: dict[str, Any] = {
        "decoder": "mine",
        "baseline": "theirs",
        "standings": [Standing(name="mine", verdict="pass", reason="judged today")],
        "unjudged": False,
        "models": Models(
            name="fixture",
            statement="small",
            target_parameters=10,
            draft_parameters=1,
            target_bytes_per_forward=40,
            vocab_size=8,
            device="cpu",
            dtype="float32",
        ),
        "settings": Settings(
            prompts="texts",
            num_prompts=4,
            prompt_tokens=8,
            max_new_tokens=64,
            temperature=0.0,
            seed=0,
            num_draft_tokens={"mine": 5, "theirs": 5},
            minutes=1.0,
        ),
        "speed": [speed],
        "environment": {"threads": "1", "cpus": "2", "processor": "abacus", "load before": "0.1"},
        "commit": "abc",
        "command": "pytest verify/bench",
        "duration_s": 1.0,
    }
    return BenchResults(**(given | changes))


@pytest.fixture
def numbers() -> SimpleNamespace:
    return SimpleNamespace(turns=turns, race_of=race_of)


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[str, BenchResults], str]:
    def store(name: str, results: BenchResults) -> str:
        path = tmp_path / name
        path.write_text(results.to_json())
        return str(path)

    return store

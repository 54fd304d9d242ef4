"""The regression gate on stored races, the stored form, and the page."""

import json
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from verify.bench.__main__ import main
from verify.bench.contestant import Contestant
from verify.bench.page import to_page
from verify.bench.schema import (
    SCHEMA_FILE,
    Accepted,
    BenchResults,
    Estimate,
    Limit,
    Memory,
    Shares,
    Standing,
    schema_text,
)
from verify.bench.speed import measure_speed
from verify.bench.turns import Patience
from verify.protocol import Request, SamplingParams

REQUEST = Request(prompt_token_ids=(1, 2), max_new_tokens=10, sampling=SamplingParams(temperature=0))
Store = Callable[[str, BenchResults], str]


def test_the_gate_sees_a_slowdown_and_lets_an_equal_decoder_pass(numbers: SimpleNamespace, stored: Store) -> None:
    theirs = numbers.turns(2.0, seed=1)
    old = stored("old.json", numbers.race_of(numbers.turns(1.0, seed=2, noise=0.01), theirs))
    equal = stored("equal.json", numbers.race_of(numbers.turns(1.0, seed=3, noise=0.01), theirs))
    slower = stored("slower.json", numbers.race_of(numbers.turns(2.0, seed=4, noise=0.01), theirs))
    assert main(["compare", old, equal, "--fail-below", "0.95"]) == 0
    assert main(["compare", old, slower, "--fail-below", "0.95"]) == 1
    assert main(["compare", old, slower]) == 0  # without a gate it only tells


def test_a_decoder_that_sleeps_twice_as_long_is_seen_from_the_loop_to_the_gate(
    clock: Any, sleepy: Any, numbers: SimpleNamespace, stored: Store
) -> None:
    mood = random.Random(0)

    def race(token_s: float) -> BenchResults:
        class Moody(sleepy):  # type: ignore[misc]
            def generate(self, requests: Any) -> Any:
                before = clock.now()
                answers = super().generate(requests)
                clock.pass_by((clock.now() - before) * mood.uniform(-0.02, 0.02))  # the machine's mood
                return answers

        times = {"mine": token_s, "theirs": 2.0}
        entrants = [
            Contestant(name=name, decoder=Moody(clock, token_s=each), num_draft_tokens=3)
            for name, each in times.items()
        ]
        patience = Patience(seconds=0, at_least=10)
        speed = measure_speed(entrants, lambda turn: [REQUEST] * 2, concurrency=1, clock=clock, patience=patience)
        return numbers.race_of([1.0, 1.0], [1.0, 1.0], speed=[speed])

    old, equal, slower = race(1.0), race(1.0), race(2.0)
    assert old.speed[0].speed_up["theirs"].estimate == pytest.approx(2, rel=0.03)
    assert old.speed[0].tokens_per_s["mine"].estimate == pytest.approx(1.0, rel=0.05)
    assert old.speed[0].identical_outputs == {"theirs": "2 of 2"}
    assert slower.speed[0].speed_up["theirs"].estimate == pytest.approx(1, rel=0.03)
    files = [stored(name, each) for name, each in (("old", old), ("equal", equal), ("slower", slower))]
    assert main(["compare", files[0], files[1], "--fail-below", "0.95"]) == 0
    assert main(["compare", files[0], files[2], "--fail-below", "0.95"]) == 1


def test_a_slow_machine_fails_the_absolute_gate_only(numbers: SimpleNamespace, stored: Store) -> None:
    ours, theirs = numbers.turns(1.0, seed=1, noise=0.01), numbers.turns(2.0, seed=2, noise=0.01)
    old = stored("old.json", numbers.race_of(ours, theirs))
    today = stored("today.json", numbers.race_of([3 * each for each in ours], [3 * each for each in theirs]))
    assert main(["compare", old, today, "--fail-below", "0.95"]) == 0
    assert main(["compare", old, today, "--fail-below", "0.95", "--absolute"]) == 1


def test_races_about_other_work_are_refused(
    numbers: SimpleNamespace, stored: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = numbers.turns(1.0, seed=1), numbers.turns(2.0, seed=2)
    race = numbers.race_of(ours, theirs)
    longer = race.model_copy(update={"settings": race.settings.model_copy(update={"max_new_tokens": 128})})
    assert main(["compare", stored("a.json", race), stored("b.json", longer)]) == 4
    assert "tokens a request is 64 in one race and 128 in the other" in capsys.readouterr().err
    assert main(["compare", "nowhere.json", "b.json"]) == 4
    assert "nowhere.json is no race" in capsys.readouterr().err


def test_another_machine_is_named(numbers: SimpleNamespace, stored: Store, capsys: pytest.CaptureFixture[str]) -> None:
    race = numbers.race_of(numbers.turns(1.0, seed=1), numbers.turns(2.0, seed=2))
    other = race.model_copy(update={"environment": race.environment | {"processor": "loom"}})
    main(["compare", stored("a.json", race), stored("b.json", other)])
    assert "processor: abacus and loom" in capsys.readouterr().err


def test_the_schema_file_is_that_of_the_code_and_accepts_a_race(numbers: SimpleNamespace) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    assert SCHEMA_FILE.read_text() == schema_text(), "run `python -m verify.bench schema`"
    race = numbers.race_of([1.0, 1.1], [2.0, 2.1])
    jsonschema.validate(json.loads(race.to_json()), json.loads(SCHEMA_FILE.read_text()))
    assert BenchResults.model_validate_json(race.to_json()) == race


def test_the_page_shows_the_numbers_and_says_loudly_what_is_not_judged(numbers: SimpleNamespace) -> None:
    some = Estimate(low=0.5, estimate=0.625, high=0.75)
    race = numbers.race_of(
        [1.0, 1.1],
        [2.0, 2.1],
        acceptance={
            "mine": Accepted(
                source="seen", rounds=9, mean_acceptance_length=some, conditional=[some], target_forwards_per_token=0.4
            )
        },
        shares={"mine": Shares(shares={"verify": 0.75, "draft": 0.25}, seconds_per_verification=0.01, overhead=0.1)},
        memory={"mine": Memory(peak_bytes=5_000_000, how="seen")},
        limit=Limit(
            copy_bytes_per_s=1e9,
            matmul_flops_per_s=1e9,
            seconds_to_read=0.004,
            seconds_to_multiply=0.001,
            seconds_measured=0.01,
            share_reached=0.4,
            plain_tokens_per_s=250.0,
        ),
        standings=[Standing(name="mine", verdict="fail", reason="<3 checks> failed")],
    )
    page = to_page(race)
    for shown in ("NOT JUDGED LOSSLESS", "&lt;3 checks&gt; failed", "0.62", "75.0%", "40% of the limit", "4 of 4"):
        assert shown in page
    assert "<script" not in page
    judged = to_page(race.model_copy(update={"standings": [Standing(name="mine", verdict="pass", reason="today")]}))
    assert "NOT JUDGED" not in judged

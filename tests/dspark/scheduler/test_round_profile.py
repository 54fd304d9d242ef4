"""The round profile: interpolation, files, and that the measurement times what it says."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from dspark.drafters.dspark import DSparkDraftSession
from dspark.drafters.factory import random_drafter
from dspark.scheduler.profile import SpeedProfile
from dspark.scheduler.round_measurement import measure_rounds
from dspark.scheduler.round_profile import RoundProfile, load_profile

Tiny = Callable[..., PreTrainedModel]
PROFILE = RoundProfile(
    row_counts=(1, 2, 4),
    draft_counts=(0, 1, 3),
    plain_seconds=(1.0, 1.5, 3.5),
    drafted_seconds=((2.0, 2.5, 3.0), (3.0, 3.5, 6.0), (5.0, 6.0, 12.0)),
    conditions={"device": "abacus"},
)


def test_measured_points_and_between_them() -> None:
    assert [1 / PROFILE.of_rows(2).at(tokens) for tokens in (2, 4, 8)] == pytest.approx([3.0, 3.5, 6.0])
    assert 1 / PROFILE.of_rows(2).at(6) == pytest.approx((3.5 + 6.0) / 2), "two rows with two drafts each"
    assert 1 / PROFILE.of_rows(3).at(6) == pytest.approx((3.5 + 6.0) / 2), "three rows with one draft each"
    assert 1 / PROFILE.plain_rounds_per_second(3) == pytest.approx(2.5)


def test_beyond_the_last_rows_and_drafts_the_seconds_go_on() -> None:
    assert 1 / PROFILE.plain_rounds_per_second(6) == pytest.approx(5.5)
    assert 1 / PROFILE.of_rows(8).at(8) == pytest.approx(9.0)
    assert 1 / PROFILE.of_rows(1).at(6) == pytest.approx(3.5)


def test_file(tmp_path: Path) -> None:
    path, other = tmp_path / "new" / "rounds.json", tmp_path / "speed.json"
    PROFILE.save(path)
    assert RoundProfile.load(path) == PROFILE == load_profile(path)
    speed = SpeedProfile(token_counts=(1, 2), steps_per_second=(2.0, 1.0))
    speed.save(other)
    assert load_profile(other) == speed
    with pytest.raises(ValueError, match="schema is 'dspark-speed-profile/1', not 'dspark-round-profile/1'"):
        RoundProfile.load(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "else/2"}, "schema is 'else/2', not 'dspark-speed-profile/1' or 'dspark-round-profile/1'"),
        ({"row_counts": [0, 1, 2]}, "row_counts are"),
        ({"draft_counts": [0, 3, 1]}, "draft_counts are"),
        ({"draft_counts": []}, "draft_counts are"),
        ({"plain_seconds": [1.0]}, "do not have the shape of 3 row counts and 3 draft counts"),
        ({"drafted_seconds": [[1.0, 2.0, 3.0]] * 2}, "do not have the shape"),
        ({"drafted_seconds": [[1.0, 2.0, 3.0]] * 2 + [[1.0]]}, "do not have the shape"),
        ({"plain_seconds": [1.0, 0.0, 1.0]}, "seconds of a round are .*; they must be positive and finite"),
        (
            {"drafted_seconds": [[1.0, 2.0, float("nan")]] * 3},
            "seconds of a round are .*; they must be positive and finite",
        ),
        ({"conditions": None}, "not iterable"),
    ],
)
def test_what_is_no_profile(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "profile.json"
    PROFILE.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message) as error:
        load_profile(path)
    assert str(error.value).endswith("Make one with `dspark profile`.")


def test_the_measured_rounds_are_what_they_stand_for(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafting is made slow, and so are forwards of two rows that verify two drafts each."""
    target = tiny("qwen3")
    drafter = random_drafter(target, kind="dspark", dtype=torch.float64, target_layer_ids=(0,))
    propose = DSparkDraftSession.propose

    def slow(self: DSparkDraftSession, **keywords: Any) -> Any:
        time.sleep(0.05)
        return propose(self, **keywords)

    def watch(module: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        if tuple(keywords["input_ids"].shape) == (2, 3):
            time.sleep(0.1)

    monkeypatch.setattr(DSparkDraftSession, "propose", slow)
    target.register_forward_pre_hook(watch, with_kwargs=True)
    profile = measure_rounds(target, drafter, row_counts=(2, 1), draft_counts=(0, 2), context_length=5, num_repeats=3)
    assert (profile.row_counts, profile.draft_counts) == ((1, 2), (0, 2))
    assert max(profile.plain_seconds) < 0.05
    assert all(0.05 < seconds < 0.1 for seconds in (*profile.drafted_seconds[0], profile.drafted_seconds[1][0]))
    assert profile.drafted_seconds[1][1] > 0.15
    assert profile.conditions["drafter"] == "DSparkDrafter"
    assert (profile.conditions["context_length"], profile.conditions["num_repeats"]) == (5, 3)


def test_a_measurement_that_cannot_be(tiny: Tiny) -> None:
    target = tiny("qwen3")
    short = random_drafter(target, kind="dspark", dtype=torch.float64, target_layer_ids=(0,), block_size=2)
    with pytest.raises(ValueError, match="texts of 60 tokens may grow by 18; the target has 64 positions"):
        measure_rounds(target, short, draft_counts=(0, 1), context_length=60, num_repeats=1)
    with pytest.raises(ValueError, match="context_length is 0; a round goes on from a token"):
        measure_rounds(target, short, context_length=0)
    with pytest.raises(ValueError, match="3 drafts are to be verified and the drafter made 2"):
        measure_rounds(target, short, row_counts=(1,), draft_counts=(3,), context_length=4, num_repeats=1)
    silent = random_drafter(target, kind="eagle3", dtype=torch.float64, target_layer_ids=(0,))
    with pytest.raises(ValueError, match="gives no confidences"):
        measure_rounds(target, silent, row_counts=(1,), draft_counts=(0, 1), context_length=4, num_repeats=1)

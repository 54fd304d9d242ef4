"""The speed profile: interpolation, files, and that the measurement times what it says."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from dspark.causal_model import CausalModel
from dspark.scheduler.algorithm import PrefixScheduler
from dspark.scheduler.measurement import WARM_UPS, measure_speed
from dspark.scheduler.profile import SpeedProfile

Tiny = Callable[..., PreTrainedModel]
PROFILE = SpeedProfile(token_counts=(2, 4, 8), steps_per_second=(10.0, 8.0, 2.0), conditions={"device": "abacus"})


def test_between_counts_the_seconds_are_linear() -> None:
    assert [PROFILE.at(count) for count in (2, 4, 8)] == [10.0, 8.0, 2.0]
    assert 1 / PROFILE.at(3) == pytest.approx((1 / 10 + 1 / 8) / 2)
    assert 1 / PROFILE.at(5) == pytest.approx(0.75 / 8 + 0.25 / 2)
    assert PROFILE.at(1) == 10.0


def test_beyond_the_last_count_the_seconds_go_on_as_between_the_last_two() -> None:
    assert 1 / PROFILE.at(16) == pytest.approx(1 / 2 + 2 * (1 / 2 - 1 / 8))
    faster_at_the_end = SpeedProfile(token_counts=(2, 4), steps_per_second=(8.0, 10.0))
    assert faster_at_the_end.at(400) == 10.0
    assert SpeedProfile(token_counts=(2,), steps_per_second=(8.0,)).at(400) == 8.0


def test_large_batches_draft_where_tokens_are_cheap() -> None:
    """The forward of 128 tokens takes 1.1 of that of one; nobody measured that of 160 rows."""
    cheap = SpeedProfile(token_counts=(1, 64, 128), steps_per_second=(100.0, 100 / 1.05, 100 / 1.1))
    assert PrefixScheduler(cheap).open().admit([[0.99] * 4] * 160) == (4,) * 160


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "profile.json"
    PROFILE.save(path)
    assert SpeedProfile.load(path) == PROFILE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "else/2"}, "schema is 'else/2'"),
        ({"token_counts": [2, 4]}, "2 token counts and 3 speeds"),
        ({"token_counts": [], "steps_per_second": []}, "0 token counts"),
        ({"token_counts": [4, 2, 8]}, "must rise from at least 1"),
        ({"token_counts": [0, 2, 8]}, "must rise from at least 1"),
        ({"steps_per_second": [1.0, 0.0, 1.0]}, "positive and finite"),
        ({"steps_per_second": [1.0, float("nan"), 1.0]}, "positive and finite"),
        ({"steps_per_second": None}, "not iterable"),
        ({"conditions": None}, "not iterable"),
    ],
)
def test_what_is_no_profile(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "profile.json"
    PROFILE.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message) as error:
        SpeedProfile.load(path)
    assert str(error.value).endswith("Make one with `dspark profile`.")


def test_no_file_no_json_no_key(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    with pytest.raises(ValueError, match="is not a file"):
        SpeedProfile.load(path)
    for text, message in (("{", "is no speed profile"), ("[]", "is no speed profile"), ("{}", "lacks 'schema'")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            SpeedProfile.load(path)


def test_the_measured_forwards_have_the_tokens_that_they_stand_for(tiny: Tiny) -> None:
    target = tiny("llama")
    shapes: list[tuple[int, ...]] = []

    def watch(module: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        shapes.append(tuple(keywords["input_ids"].shape))
        if keywords["input_ids"].numel() == 2:
            time.sleep(0.05)

    target.register_forward_pre_hook(watch, with_kwargs=True)
    profile = measure_speed(
        CausalModel.of(target), token_counts=(8, 1, 2), tokens_per_row=4, context_length=5, num_repeats=3
    )
    prefills = [shape for shape in shapes if shape[1] == 5]
    steps = [shape for shape in shapes if shape[1] != 5]
    assert prefills == [(1, 5), (1, 5), (2, 5)]
    assert steps[-9:] == [(1, 1), (1, 2), (2, 4)] * 3  # in turn
    assert len(steps) == 3 * (WARM_UPS + 3)
    assert profile.token_counts == (1, 2, 8)
    assert profile.at(2) < 1 / 0.05
    assert profile.at(1) > 1 / 0.05
    assert profile.conditions["dtype"] == "float64"
    assert (profile.conditions["context_length"], profile.conditions["num_repeats"]) == (5, 3)


def test_a_measurement_that_cannot_be(tiny: Tiny) -> None:
    target = CausalModel.of(tiny("llama"))
    with pytest.raises(ValueError, match="a token count is 6; it must be 1 to 4 or a multiple of 4"):
        measure_speed(target, token_counts=(1, 6), tokens_per_row=4)
    with pytest.raises(ValueError, match="the target has 64 positions"):
        measure_speed(target, token_counts=(1,), context_length=60)

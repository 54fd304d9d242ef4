"""The bet on acceptance: no alarm under theory, an alarm at the error that it says it would see."""

import math

import numpy as np
import pytest

from tests.measurements.other_bets import acceptance
from verify.checks.acceptance import _log_stakes, _visible_shift, largest_log_wealth, whole_rounds
from verify.models.observer import Round
from verify.protocol import Request

ALPHA = 1e-3


def crosses(expected: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> bool:
    accepted = rng.random(expected.size) < truth
    return largest_log_wealth(expected, accepted) >= -math.log(ALPHA)


def test_false_alarms_and_power() -> None:
    rng = np.random.default_rng(0)
    expected = rng.beta(4, 2, size=1500)
    size = _visible_shift(expected, ALPHA)
    assert size is not None
    assert size <= 0.1
    assert sum(crosses(expected, expected, rng) for _ in range(1000)) <= 5  # 1 expected at most
    for sign in (-1, 1):
        shifted = np.clip(expected + sign * size, 1e-3, 1 - 1e-3)
        assert sum(crosses(expected, shifted, rng) for _ in range(200)) >= 186  # 0.95, less four standard errors


def test_what_theory_excludes_is_an_alarm_at_once() -> None:
    assert _log_stakes(np.array([0.0]), np.array([True])).max() == math.inf
    assert np.isfinite(_log_stakes(np.array([1.0]), np.array([True]))).all()


def test_rounding_is_no_alarm() -> None:
    """A draft that is the target itself, in bfloat16: theory accepts everything, and rounding rejects a few of a thousand."""
    rng = np.random.default_rng(0)
    tolerance = 0.04
    expected = np.concatenate([np.ones(500), rng.beta(4, 2, size=500)])
    for sign in (-1, 1):
        moved = np.clip(expected + sign * tolerance, 0, 1)
        runs = [rng.random(expected.size) < moved for _ in range(200)]
        assert max(largest_log_wealth(expected, accepted, tolerance=tolerance) for accepted in runs) < -math.log(1e-5)
    assert largest_log_wealth(np.ones(1), np.array([False])) == math.inf
    assert _visible_shift(np.ones(900), ALPHA, tolerance=tolerance) is not None
    assert _visible_shift(np.ones(9), ALPHA, tolerance=tolerance) is None
    size = _visible_shift(expected[500:], ALPHA, tolerance=tolerance)
    assert size is not None
    accepted = rng.random(500) < np.clip(expected[500:] - size, 0, 1)
    assert largest_log_wealth(expected[500:], accepted, tolerance=tolerance) >= -math.log(ALPHA)


def test_rounds_are_chosen_before_they_are_drafted() -> None:
    # Without the last rounds those that accept much are missing: 21% of the correct runs crossed 1/0.01.
    crossed = {
        keep: sum(acceptance(np.random.default_rng(seed), keep) >= -math.log(0.01) for seed in range(60))
        for keep in (whole_rounds, lambda rounds, _: rounds[:-1])
    }
    right, wrong = crossed.values()
    assert right <= 4 < wrong


def test_a_round_that_just_fits_is_whole() -> None:
    request = Request(prompt_token_ids=(1,), max_new_tokens=10, num_draft_tokens=4)
    rounds = [Round(0, 4, 4), Round(5, 4, 0), Round(6, 3, 3)]
    assert whole_rounds(rounds, request) == rounds[:2]
    with pytest.raises(ValueError, match="ask without stop tokens"):
        whole_rounds(rounds, Request(prompt_token_ids=(1,), max_new_tokens=10, stop_token_ids=(3,)))

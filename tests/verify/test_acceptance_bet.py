"""The bet on acceptance: no alarm under theory, an alarm at the error that it says it would see."""

import math

import numpy as np

from verify.checks.acceptance import SHIFTS, _log_stakes, _visible_shift

ALPHA = 1e-3


def crosses(expected: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> bool:
    accepted = rng.random(expected.size) < truth
    log_wealth = np.logaddexp.reduce(_log_stakes(expected, accepted).cumsum(1), axis=0) - math.log(len(SHIFTS))
    return bool(log_wealth.max() >= -math.log(ALPHA))


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

"""The bet on dependent streams: no alarm under independence, an alarm at the error that it says it would see."""

import numpy as np

from verify.checks.randomness import (
    largest_log_wealth,
    largest_log_wealth_of_lags,
    smallest_visible_repeat,
    smallest_visible_repetition,
)

ALPHA = 1e-3
LAW = np.array([0.4, 0.3, 0.2, 0.1])


def test_false_alarms_and_power() -> None:
    rng = np.random.default_rng(1)
    independent = rng.choice(4, p=LAW, size=(4000, 200))
    assert (largest_log_wealth(LAW, independent) >= -np.log(ALPHA)).sum() <= 12  # 4 expected at most
    share = smallest_visible_repeat(LAW, num_streams=200, alpha=ALPHA)
    assert share is not None
    dependent = independent[:400].copy()
    for now in range(1, 200):
        repeats = rng.random(400) < share
        dependent[repeats, now] = dependent[repeats, now - 1]
    assert (largest_log_wealth(LAW, dependent) >= -np.log(ALPHA)).mean() >= 0.94


def test_few_streams_promise_nothing() -> None:
    assert smallest_visible_repeat(LAW, num_streams=5, alpha=1e-9) is None


def test_tokens_outside_the_support_do_not_pay() -> None:
    law = np.array([0.5, 0.5, 0.0])
    assert largest_log_wealth(law, np.array([[2] * 50]))[0] == 0.0


def test_repetition_false_alarms_and_power() -> None:
    rng = np.random.default_rng(2)
    independent = rng.choice(4, p=LAW, size=(1500, 120))
    alarms = [largest_log_wealth_of_lags(LAW[each], each) >= -np.log(ALPHA) for each in independent]
    assert sum(alarms) <= 6  # 1.5 expected at most
    share = smallest_visible_repetition(LAW, num_tokens=120, alpha=ALPHA)
    assert share is not None
    repeating = independent[:200].copy()
    again = rng.random((200, 60)) < share
    repeating[:, 60:] = np.where(again, repeating[:, :60], repeating[:, 60:])
    seen = [largest_log_wealth_of_lags(LAW[each], each) >= -np.log(ALPHA) for each in repeating]
    assert np.mean(seen) >= 0.94
    assert smallest_visible_repetition(LAW, num_tokens=12, alpha=1e-9) is None

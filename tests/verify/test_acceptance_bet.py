"""The bet on acceptance: no alarm under theory, an alarm at the error that it says it would see."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from verify.checks.acceptance import SHIFTS, _log_stakes, _visible_shift, whole_rounds
from verify.models.observer import Round
from verify.protocol import Request

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


def answer(rng: np.random.Generator, request: Request) -> tuple[list[Round], np.ndarray, np.ndarray]:
    """The standard rule on one request: rounds, and by output position the chance of acceptance and whether it came about."""
    expected = rng.beta(6, 4, size=request.max_new_tokens)
    accepted = rng.random(request.max_new_tokens) < expected
    rounds: list[Round] = []
    position = 0
    while position < request.max_new_tokens:
        drafted = min(request.num_draft_tokens, request.max_new_tokens - position - 1)
        outcomes = accepted[position : position + drafted]
        num_accepted = int(np.argmin(outcomes)) if not outcomes.all() else drafted
        rounds.append(Round(position, drafted, num_accepted))
        position += num_accepted + 1
    return rounds, expected, accepted


def alarms(keep: Callable[[list[Round], Request], list[Round]], *, runs: int, alpha: float) -> int:
    """Runs of a correct decoder, each at the size of the exhaustive profile, that cross 1/alpha."""
    rng = np.random.default_rng(1)
    request = Request(prompt_token_ids=(1,), max_new_tokens=40, num_draft_tokens=4)
    crossed = 0
    for _ in range(runs):
        trials: list[tuple[float, bool]] = []
        for _ in range(384):
            rounds, expected, accepted = answer(rng, request)
            for one in keep(rounds, request):
                tried = range(one.output_offset, one.output_offset + min(one.num_accepted + 1, one.num_draft_tokens))
                trials += [(expected[position], bool(accepted[position])) for position in tried]
        log_wealth = _log_stakes(np.array([each for each, _ in trials]), np.array([outcome for _, outcome in trials]))
        crossed += bool(
            np.logaddexp.reduce(log_wealth.cumsum(1), axis=0).max() - math.log(len(SHIFTS)) >= -math.log(alpha)
        )
    return crossed


def test_rounds_are_chosen_before_they_are_drafted() -> None:
    # Leaving out the last round leaves out rounds for what they accept: 21% of the correct runs crossed 1/0.01.
    assert alarms(whole_rounds, runs=60, alpha=0.01) <= 4
    assert alarms(lambda rounds, _: rounds[:-1], runs=60, alpha=0.01) > 4


def test_a_round_that_just_fits_is_whole() -> None:
    request = Request(prompt_token_ids=(1,), max_new_tokens=10, num_draft_tokens=4)
    rounds = [Round(0, 4, 4), Round(5, 4, 0), Round(6, 3, 3)]
    assert whole_rounds(rounds, request) == rounds[:2]
    with pytest.raises(ValueError, match="ask without stop tokens"):
        whole_rounds(rounds, Request(prompt_token_ids=(1,), max_new_tokens=10, stop_token_ids=(3,)))

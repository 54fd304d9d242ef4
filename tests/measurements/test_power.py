"""Bets from counts are the engine's bets; the rivals keep their alpha and have the power that is said of them."""

import math

import numpy as np
import pytest
from scipy.stats import chi2

from tests.measurements.bulk import BulkBets, law_with_error, tokens_until_rejection
from tests.measurements.power import ALPHA, BUGS, UNKNOWN, contexts_of, measure, wrong_law
from tests.measurements.rivals import ChiSquare, KernelTest, ratio_test_rejects, smallest
from verify.betting.wealth import Wealth

CONTEXTS = contexts_of(8, 10)
EMITTED = law_with_error(CONTEXTS, wrong_law(CONTEXTS, "draft_leak"), 0.05)


def test_wealth_from_counts_is_the_engines() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(8, size=900)
    tokens = (np.cumsum(EMITTED[rows], axis=1) <= rng.random((900, 1))).sum(axis=1)
    wealth = Wealth(alpha=ALPHA, learners=[])
    wealth.update(CONTEXTS.evidence(tokens, rows))
    counts = np.bincount(rows * 10 + tokens, minlength=80)
    bets = BulkBets(CONTEXTS, EMITTED, alpha=ALPHA, num_runs=1)
    bets.update(counts[None, :])
    engine = wealth.blind.log_wealth_of[: bets._wealth_of_fixed.shape[1]]
    np.testing.assert_allclose(bets._wealth_of_fixed[0], engine, atol=1e-9)


def test_tokens_until_rejection_are_the_engines() -> None:
    rng = np.random.default_rng(1)
    bulk = tokens_until_rejection(CONTEXTS, EMITTED, alpha=ALPHA, num_runs=60, limit=1e6, rng=rng)
    times = []
    for _ in range(12):
        wealth = Wealth(alpha=ALPHA)
        while not wealth.rejected:
            rows = rng.integers(8, size=512)
            tokens = (np.cumsum(EMITTED[rows], axis=1) <= rng.random((512, 1))).sum(axis=1)
            wealth.update(CONTEXTS.evidence(tokens, rows))
        times.append(wealth.tokens_until_rejection)
    assert 0.75 < np.mean(times) / bulk.mean() < 1.25


def test_a_correct_decoder_is_not_rejected_and_a_bug_below_every_fixed_share_is() -> None:
    rng = np.random.default_rng(2)
    assert np.isinf(
        tokens_until_rejection(CONTEXTS, CONTEXTS.target, alpha=1e-3, num_runs=20, limit=1e6, rng=rng)
    ).all()
    tiny = law_with_error(CONTEXTS, wrong_law(CONTEXTS, "residual_absolute"), 1e-4)
    assert np.isfinite(tokens_until_rejection(CONTEXTS, tiny, alpha=ALPHA, num_runs=5, limit=1e12, rng=rng)).all()


@pytest.mark.parametrize("size", [0.0, 0.06])
def test_rivals_reject_as_often_as_computed(size: float) -> None:
    rng, alpha, number, runs = np.random.default_rng(3), 0.05, 1600, 400
    emitted = law_with_error(CONTEXTS, wrong_law(CONTEXTS, "draft_leak"), size)
    chi_square, kernel = ChiSquare(target=CONTEXTS.target), KernelTest(target=CONTEXTS.target)
    threshold = kernel.threshold(alpha)
    counts = rng.multinomial(number // 8, emitted, size=(runs, 8))
    expected = CONTEXTS.target * number / 8
    by_chi_square = ((counts - expected) ** 2 / expected).sum(axis=(1, 2)) > chi2.isf(alpha, chi_square.freedom)
    by_kernel = number * ((counts / (number / 8) - CONTEXTS.target) ** 2).sum(axis=(1, 2)) > threshold
    computed = (
        chi_square.power(emitted, num_tokens=number, alpha=alpha),
        kernel.power(emitted, num_tokens=number, threshold=threshold) if size else alpha,
    )
    assert abs(by_chi_square.mean() - computed[0]) < 0.06
    assert abs(by_kernel.mean() - computed[1]) < 0.06
    if size:
        assert computed[0] > 0.3  # a test that never rejects would agree with itself as well


def test_the_ratio_rule_sees_a_large_bug_and_no_small_one() -> None:
    rng = np.random.default_rng(4)
    contexts = contexts_of(1, 10)

    def failed(size: float) -> int:
        emitted = law_with_error(contexts, wrong_law(contexts, "draft_leak"), size)
        return sum(ratio_test_rejects(contexts.target, emitted, rng) for _ in range(40))

    assert failed(0.1) == 40
    assert failed(0.001) < 10


def test_one_job() -> None:
    job = {"setting": "one context of 10 tokens", "bug": BUGS[0], "total_variation": 0.03, "runs": 4, "seed": 0}
    entry = measure(job)
    assert entry["betting"]["mean"] < 1.2 * entry["chi_square"]
    assert entry["chi_square"] < entry["kernel"]
    assert measure({**job, "bug": UNKNOWN, "total_variation": 0.99}) == {"betting": None}


def test_smallest() -> None:
    assert smallest(lambda number: number >= 12345) == pytest.approx(12345, rel=2e-3)
    assert smallest(lambda number: False) == math.inf

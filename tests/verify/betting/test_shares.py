"""Learned shares find a leak of any size, never look at the tokens they bet on, and do not depend on the batches."""

import numpy as np
import pytest
from scipy.stats import binomtest

from verify.betting.hypotheses import SHARES
from verify.betting.shares import WINDOW, LearnedShares

ALPHA = 0.05


def gains_of(rng, num_runs, num_tokens, leak, rare=1e-3):
    """Gains of a law that always emits a token whose target probability is `rare`, [num_runs, num_tokens]."""
    hit = rng.random((num_runs, num_tokens)) < (1 - leak) * rare + leak
    return np.where(hit, 1 / rare - 1, -1.0)


@pytest.mark.parametrize("leak", [0.0005, 0.005, 0.3])
def test_the_share_is_found_and_pays_almost_as_well_as_the_best(leak):
    gains = gains_of(np.random.default_rng(0), 4, 60_000, leak)
    learned = LearnedShares(4)
    wealth = np.log(learned.bet(gains)).sum(axis=1)
    best = np.max(
        [np.log1p(share * gains).sum(axis=1) for share in np.geomspace(leak / 4, min(0.5, 4 * leak), 15)], axis=0
    )
    assert (wealth > 0.9 * best - 12).all()
    assert (abs(learned.shares / leak - 1) < 0.35).all()


def test_fixed_shares_lose_on_a_leak_far_below_them():
    gains = gains_of(np.random.default_rng(0), 4, 60_000, 0.0005)
    assert (np.log1p(min(SHARES) * gains).sum(axis=1) < 0).all()
    assert (np.log(LearnedShares(4).bet(gains)).sum(axis=1) > 0).all()


class Peeking(LearnedShares):
    """Learns from a window before it bets on it."""

    def bet(self, gains):
        super().bet(gains)
        return super().bet(gains)


@pytest.mark.parametrize(("shares", "holds"), [(LearnedShares, True), (Peeking, False)])
def test_under_the_null_wealth_crosses_no_more_often_than_alpha(shares, holds):
    gains = gains_of(np.random.default_rng(1), 2000, 5 * WINDOW, 0.0, rare=0.05)
    learned = shares(2000)
    wealth = np.concatenate([np.log(learned.bet(part)) for part in np.split(gains, 5, axis=1)], axis=1).cumsum(axis=1)
    crossed = int((wealth.max(axis=1) >= -np.log(ALPHA)).sum())
    assert (binomtest(crossed, 2000, ALPHA, alternative="greater").pvalue > 1e-4) == holds


def test_batches_do_not_matter_and_who_sits_out_pays_nothing():
    gains = gains_of(np.random.default_rng(2), 3, 500, 0.05)
    gains[1] = np.nan
    whole, parts = LearnedShares(3), LearnedShares(3)
    expected = whole.bet(gains)
    found = np.concatenate([parts.bet(gains[:, :7]), parts.bet(gains[:, 7:333]), parts.bet(gains[:, 333:])], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_array_equal(np.isnan(expected), np.isnan(gains))
    assert whole.shares[1] == 0
    assert (expected[[0, 2], :WINDOW] == 1).all()  # nothing is staked before anything is known


def test_a_gain_without_bound_does_not_break_the_share():
    gains = np.full((1, 3 * WINDOW), -1.0)
    gains[0, 3] = 1e300
    learned = LearnedShares(1)
    factors = learned.bet(gains)
    assert np.isfinite(factors).all()
    assert 0 <= learned.shares[0] <= 0.5

"""Bounds cover the truth as often as they say, and the promised leak is really seen."""

import numpy as np
import pytest
from scipy.stats import binomtest

from verify.betting.certificates import (
    LEAKS,
    LeakBounds,
    leak_upper_bound,
    log_likelihoods,
    total_variation_upper_bound,
)
from verify.betting.evidence import TokenEvidence
from verify.betting.hypotheses import emitted_ratios, scored_pieces
from verify.betting.library import library
from verify.betting.power import Moments
from verify.betting.wealth import Wealth

DRAFT_LEAK = next(each for each in library() if each.name == "draft_leak")
DELTA = 0.1
RUNS = 300


def covers_often_enough(misses):
    """No evidence, at level 1e-4, that bounds are wrong more often than delta."""
    return binomtest(misses, RUNS, DELTA, alternative="greater").pvalue > 1e-4


@pytest.mark.parametrize("leak", [0.0, 0.05, 0.3])
def test_leak_bound_covers_the_true_leak(leak, make_simulator):
    rng = np.random.default_rng(0)
    simulator = make_simulator(vocab_size=16)
    bounds = []
    likeliest = []
    grid = np.linspace(0, 0.95, 96)
    for _ in range(RUNS):
        evidence = simulator(rng, 400, "draft_leak", leak=leak)
        bounds.append(leak_upper_bound(DRAFT_LEAK, evidence, delta=DELTA).leak)
        gains = emitted_ratios((DRAFT_LEAK,), evidence)[0] - 1
        likeliest.append(grid[np.argmax(np.log1p(grid[:, None] * gains).sum(axis=1))])
    assert covers_often_enough(sum(bound < leak for bound in bounds))
    assert np.median(bounds) < leak + 0.25  # a bound that says nothing would cover as well
    if leak:
        # The maximum-likelihood leak is no bound, and the same count shows it.
        assert not covers_often_enough(sum(estimate < leak for estimate in likeliest))


def test_leak_bound_shrinks_with_evidence_and_grows_with_tolerance(make_simulator):
    rng = np.random.default_rng(1)
    simulator = make_simulator()
    bounds, noisy = LeakBounds(library(), delta=DELTA), LeakBounds(library(), delta=DELTA, tolerance=0.01)
    seen = []
    for _ in range(3):
        evidence = simulator(rng, 2000)
        bounds.update(evidence)
        noisy.update(evidence)
        seen.append(bounds.bounds()["recovered_from_draft"].leak)
    assert seen[0] >= seen[1] >= seen[2]
    assert seen[2] < 0.1
    assert noisy.bounds()["recovered_from_draft"].leak > seen[2]
    assert "no_history" not in bounds.bounds()
    assert bounds.bounds()["draft_leak"].total_variation(0.4) == pytest.approx(0.4 * bounds.bounds()["draft_leak"].leak)


def test_leak_bound_is_void_when_no_leak_explains_the_tokens():
    # The law excludes token 0 less than the tokens do: neither leak 0 nor any other fits.
    target = np.tile([0.5, 0.5], (500, 1))
    evidence = TokenEvidence(target_probs=target, token_ids=np.zeros(500, dtype=int), draft_probs=target)
    assert leak_upper_bound(DRAFT_LEAK, evidence, delta=DELTA).leak == 1.0


@pytest.mark.parametrize("vocab_size", [3, 200])
def test_total_variation_bound_covers_and_is_sharper_than_weissman_alone(vocab_size):
    rng = np.random.default_rng(2)
    num_tokens = 400
    misses = bare_misses = 0
    for _ in range(RUNS):
        target, true = rng.dirichlet(np.ones(vocab_size)), rng.dirichlet(np.ones(vocab_size))
        distance = 0.5 * np.abs(target - true).sum()
        counts = rng.multinomial(num_tokens, true)
        bound = total_variation_upper_bound(counts, target, delta=DELTA)
        observed = 0.5 * np.abs(counts / num_tokens - target).sum()
        misses += bound < distance
        bare_misses += observed < distance
        radius = np.sqrt(2 * (vocab_size * np.log(2) + np.log(1 / DELTA)) / num_tokens)
        assert bound <= min(1, observed + 0.5 * radius) + 1e-12
    assert covers_often_enough(misses)
    # Without its radius the distance of the counts is no bound; where it is biased upwards (many tokens) it happens to be.
    if vocab_size == 3:
        assert not covers_often_enough(bare_misses)


def test_total_variation_bound_needs_observations():
    with pytest.raises(ValueError, match="at least one emitted token"):
        total_variation_upper_bound([0, 0], [0.5, 0.5], delta=DELTA)


@pytest.mark.parametrize(("label", "num_tokens"), [("draft_leak", 1200), ("recovered_from_draft", 1200)])
def test_the_smallest_visible_leak_is_seen(label, num_tokens, make_simulator):
    simulator = make_simulator(vocab_size=16, disagreement=1.2)
    rng = np.random.default_rng(3)
    moments = Moments(library(), max_contexts=1000)
    moments.update(simulator(rng, 1000))
    promised = moments.smallest_visible_leak(label, wealth=Wealth(alpha=1e-6), num_tokens=num_tokens)
    assert 0 < promised.leak < 0.5
    assert promised.total_variation == pytest.approx(promised.leak * moments.mean_distance(label))
    hypothesis = next(each for each in library() if each.label == label)
    seen = seen_at_a_fifth = 0
    for _ in range(100):
        base = next(simulator(rng, num_tokens * 2 // 3).chunks(num_tokens))
        law = hypothesis.law(base)
        for share in (1.0, 0.2):
            leak = share * promised.leak
            mixed = (1 - leak) * base.target_probs + leak * law
            tokens = (np.cumsum(mixed, axis=1) <= rng.random((num_tokens, 1))).sum(axis=1)
            wealth = Wealth(alpha=1e-6)
            wealth.update(TokenEvidence(target_probs=base.target_probs, token_ids=tokens, draft_probs=base.draft_probs))
            seen += wealth.rejected and share == 1.0
            seen_at_a_fifth += wealth.rejected and share == 0.2
    assert seen >= 95
    assert seen_at_a_fifth < 95  # the promise is not trivially modest


def test_more_tokens_show_a_smaller_leak_and_too_few_show_none(make_simulator):
    moments = Moments(library(), max_contexts=300)
    moments.update(make_simulator()(np.random.default_rng(4), 500))
    wealth = Wealth(alpha=1e-9)
    leaks = [
        moments.smallest_visible_leak("draft_leak", wealth=wealth, num_tokens=n).leak for n in (2000, 20_000, 10**6)
    ]
    assert leaks[0] > leaks[1] > leaks[2]
    assert moments.smallest_visible_leak("draft_leak", wealth=wealth, num_tokens=10) is None
    noisy = Wealth(alpha=1e-9, tolerance=1e-3)
    assert moments.smallest_visible_leak("draft_leak", wealth=noisy, num_tokens=20_000).leak > leaks[1]
    with pytest.raises(ValueError, match="no contexts seen"):
        moments.smallest_visible_leak("no_history", wealth=wealth, num_tokens=10)
    assert int(moments.num_contexts.max()) == 300


def test_moments_of_the_stated_errors_alone_promise_the_same(make_simulator):
    evidence = make_simulator()(np.random.default_rng(5), 200)
    every, stated = Moments(library()), Moments(library(), visible=("draft_leak",))
    every.update(evidence)
    stated.update(evidence)
    wealth = Wealth(alpha=1e-6)
    ask = {"wealth": wealth, "num_tokens": 5000}
    assert stated.smallest_visible_leak("draft_leak", **ask) == every.smallest_visible_leak("draft_leak", **ask)
    assert stated.mean_distance("uniform_leak") == every.mean_distance("uniform_leak")
    with pytest.raises(ValueError, match="name it in `visible`"):
        stated.smallest_visible_leak("uniform_leak", **ask)


def test_moments_of_laws_that_come_late(make_simulator):
    # Some settings have laws of their own: a run may begin with hundreds of contexts that hold none of them.
    rng = np.random.default_rng(6)
    late = make_simulator()(rng, 100)
    plain = make_simulator()(rng, 300)
    early = TokenEvidence(
        target_probs=plain.target_probs, token_ids=plain.token_ids, alternatives={"no_history": plain.target_probs}
    )
    moments, alone, bounds = (
        Moments(library(), max_contexts=150),
        Moments(library()),
        LeakBounds(library(), delta=DELTA),
    )
    for evidence in (early, late):
        moments.update(evidence)
        bounds.update(evidence)
    alone.update(next(late.chunks(150)))
    assert int(moments.num_contexts.max()) == 150
    for label in bounds.bounds():
        assert moments.mean_distance(label) >= 0
    assert moments.mean_distance("draft_leak") == pytest.approx(alone.mean_distance("draft_leak"), rel=1e-12)


@pytest.mark.parametrize("extreme", [1.0, 0.0, 1e-40, 1e60, 1e300])
def test_likelihoods_of_factors_multiplied_before_the_logarithm(extreme):
    ratio = np.random.default_rng(7).lognormal(size=203)
    ratio[5] = extreme
    with np.errstate(divide="ignore"):
        one_by_one = np.log1p(LEAKS[:, None] * (ratio - 1)).sum(axis=1)
    np.testing.assert_allclose(log_likelihoods(ratio), one_by_one, rtol=1e-9, atol=1e-9)


def test_pieces_scored_once_serve_bets_and_bounds(make_simulator):
    evidence = make_simulator()(np.random.default_rng(8), 700)
    wealth, bounds = Wealth(library(), alpha=1e-6), LeakBounds(library(), delta=DELTA)
    for piece, ratios in scored_pieces(library(), evidence):
        wealth.add(piece, ratios)
        bounds.add(ratios)
    alone, alone_bounds = Wealth(alpha=1e-6), LeakBounds(library(), delta=DELTA)
    alone.update(evidence)
    alone_bounds.update(evidence)
    assert wealth.log_wealth == alone.log_wealth
    assert bounds.bounds() == alone_bounds.bounds()

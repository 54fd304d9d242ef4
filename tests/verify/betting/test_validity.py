"""The false-alarm probability is what it is said to be, and breaks visibly when a bettor cheats or noise is ignored."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from verify.betting.evidence import TokenEvidence
from verify.betting.learners import LearnedHypothesis, TokenTilt
from verify.betting.library import ALTERNATIVES, library
from verify.betting.wealth import Wealth
from verify.models.law import alternative_laws
from verify.protocol import Request, SamplingParams

ALPHA = 0.05


def draw(rng, laws):
    totals = np.cumsum(laws, axis=1)
    return (totals <= rng.random((len(laws), 1)) * totals[:, -1:]).sum(axis=1)


def lossless_run(rng, num_tokens, vocab_size=6):
    """Tokens of a lossless decoder with peaked, random laws, some with zeros; offsets as a standard decoder has them."""
    target = rng.dirichlet(np.full(vocab_size, rng.choice([0.1, 0.5, 2.0])), num_tokens) + 1e-12
    target[rng.random(target.shape) < 0.2] = 0
    target[:, 0] += 1e-3
    target /= target.sum(axis=1, keepdims=True)
    return TokenEvidence(
        target_probs=target,
        token_ids=draw(rng, target),
        draft_probs=rng.dirichlet(np.full(vocab_size, 0.5), num_tokens),
        alternatives={"unprocessed": np.sqrt(target) / np.sqrt(target).sum(axis=1, keepdims=True)},
        draft_offsets=np.arange(num_tokens) % 4,
        num_draft_tokens=3,
    )


def crossing_is_at_most(alpha, crossed, runs):
    """No evidence, at level 1e-4, that crossings are more frequent than alpha."""
    return binomtest(crossed, runs, alpha, alternative="greater").pvalue > 1e-4


def test_lossless_runs_cross_no_more_often_than_alpha():
    rng = np.random.default_rng(0)
    blind = informed = 0
    for _ in range(2000):
        wealth = Wealth(alpha=ALPHA)
        wealth.update(lossless_run(rng, 50))
        blind += wealth.rejected
        informed += wealth.informed.rejected
    assert crossing_is_at_most(ALPHA, blind, 2000)
    assert crossing_is_at_most(ALPHA, informed, 2000)


class Peeking:
    """A bettor that has seen the token that it bets on."""

    def __init__(self):
        self._tilt = TokenTilt(shrinkage=1.0)

    def ratios(self, evidence):
        self._tilt.learn(evidence)
        return self._tilt.ratios(evidence)

    def learn(self, evidence):
        pass


def test_a_bettor_that_peeks_is_exposed_by_the_same_simulation():
    rng = np.random.default_rng(0)
    cheat = LearnedHypothesis(name="peeking", explanation="", make=Peeking)
    crossed = 0
    for _ in range(100):
        wealth = Wealth([], alpha=ALPHA, learners=[cheat])
        wealth.update(lossless_run(rng, 80))
        crossed += wealth.rejected
    assert not crossing_is_at_most(ALPHA, crossed, 100)


def noisy_run(rng, make_simulator, eta, num_rounds):
    """A correct decoder whose own law is eta closer to the draft, in log-probability, than the reference is."""
    evidence = make_simulator(vocab_size=16)(rng, num_rounds)
    lean = np.where(evidence.draft_probs > evidence.target_probs, eta / 2, -eta / 2)
    true = evidence.target_probs * np.exp(lean)
    true /= true.sum(axis=1, keepdims=True)
    assert abs(np.log(true / evidence.target_probs)).max() <= eta
    return TokenEvidence(
        target_probs=evidence.target_probs, token_ids=draw(rng, true), draft_probs=evidence.draft_probs
    )


@pytest.mark.parametrize(("tolerance", "holds"), [(0.3, True), (0.0, False)])
def test_noise_within_the_tolerance_is_no_alarm_and_without_tolerance_is(tolerance, holds, make_simulator):
    rng = np.random.default_rng(2)
    crossed = 0
    for _ in range(100):
        wealth = Wealth(alpha=ALPHA, tolerance=tolerance)
        wealth.update(noisy_run(rng, make_simulator, 0.3, 300))
        crossed += wealth.rejected
    assert crossing_is_at_most(ALPHA, crossed, 100) == holds


def test_a_bug_is_found_under_tolerance(make_simulator):
    wealth = Wealth(alpha=1e-9, tolerance=0.05)
    wealth.update(make_simulator()(np.random.default_rng(3), 600, "recovered_from_draft"))
    assert wealth.rejected


def test_a_token_outside_the_support_rejects_at_once_with_its_index():
    target = np.tile([0.0, 0.5, 0.5], (50, 1))
    tokens = 1 + np.arange(50) % 2
    wealth = Wealth(alpha=1e-9, tolerance=0.1)
    wealth.update(TokenEvidence(target_probs=target, token_ids=tokens))
    assert not wealth.rejected
    tokens[7] = 0
    wealth.update(TokenEvidence(target_probs=target, token_ids=tokens))
    assert wealth.rejected
    assert wealth.support_violation.index == 57
    assert wealth.support_violation.token_id == 0
    assert wealth.tokens_until_rejection == 58


@pytest.mark.parametrize(("rate", "holds"), [(1.0, True), (20.0, False)])
def test_a_support_floor_allows_its_rate_and_no_more(rate, holds):
    floor, crossed = 1e-3, 0
    rng = np.random.default_rng(4)
    target = np.tile([0.0, 0.3, 0.7], (1000, 1))
    for _ in range(200):
        tokens = np.where(rng.random(1000) < rate * floor, 0, draw(rng, target))
        wealth = Wealth(alpha=ALPHA, support_floor=floor)
        wealth.update(TokenEvidence(target_probs=target, token_ids=tokens))
        crossed += wealth.rejected
    assert crossing_is_at_most(ALPHA, crossed, 200) == holds


def test_every_law_that_is_bet_on_is_known_before_the_token():
    # Two outputs that differ in their last token: whatever is bet on at its position must be the same.
    torch.manual_seed(0)
    sampling = SamplingParams(temperature=0.7, top_k=5, repetition_penalty=1.3)
    laws = []
    for last in (1, 2):
        output = [3, 4, last]
        rows = torch.randn(4, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        rows[3] += last  # the row behind the last token depends on it
        rows[3, last] += 2
        request = Request(prompt_token_ids=(0,), max_new_tokens=3, sampling=sampling)
        laws.append(alternative_laws(rows, request, output))
    known = [name for name in laws[0] if name in ALTERNATIVES]
    assert {"unprocessed", "no_temperature", "no_truncation", "no_history", "stale_history", "previous_row"} <= set(
        known
    )
    assert all(torch.equal(laws[0][name][2], laws[1][name][2]) for name in known)
    # The row one position later fails this test, which is why nobody bets on it.
    assert not torch.equal(laws[0]["next_row"][2], laws[1]["next_row"][2])
    assert "next_row" not in ALTERNATIVES
    assert {need for each in library() for need in each.needs} <= {"draft", *ALTERNATIVES}

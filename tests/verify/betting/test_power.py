"""Planted bugs are rejected within the stated number of tokens at alpha 1e-9 and called by their name."""

import numpy as np
import pytest

from verify.betting.diagnosis import diagnose
from verify.betting.evidence import TokenEvidence
from verify.betting.library import library
from verify.betting.power import Moments
from verify.betting.wealth import Wealth

ALPHA = 1e-9


def tokens_until_rejection(simulator, bug, *, limit, seed=0, hypotheses=None, learners=None, rounds=200):
    rng = np.random.default_rng(seed)
    wealth = Wealth(hypotheses, alpha=ALPHA, learners=learners)
    while wealth.num_tokens < limit and not wealth.rejected:
        wealth.update(simulator(rng, rounds, bug))
    return wealth


# Limits are about twice the slowest of several seeds.
@pytest.mark.parametrize(
    ("bug", "limit"),
    [
        ("residual_not_subtracted", 2_000),
        ("recovered_from_draft", 500),
        ("residual_absolute", 1_000),
        ("residual_softmax", 500),
        ("residual_argmax", 300),
        ("accept_without_coin", 200),
        ("greedy_draft_as_soft", 150),
        ("everything_accepted", 300),
        ("draft_token_0_lost", 12_000),
        ("bonus_from_draft", 6_000),
        ("bonus_unprocessed", 60_000),
        ("unprocessed", 1_000),
    ],
)
def test_bug_is_rejected_and_named(bug, limit, make_simulator):
    simulator = make_simulator()
    wealth = tokens_until_rejection(simulator, bug, limit=limit)
    assert wealth.tokens_until_rejection <= limit
    # The name needs a little more than the rejection: the same run is read on for 1,000 rounds.
    wealth.update(simulator(np.random.default_rng(99), 1000, bug))
    assert diagnose(wealth).name == bug


# Small bugs: mean total variation 0.017 (coin too generous by 0.02) and 0.008 (1% of the tokens from the draft).
@pytest.mark.parametrize(
    ("bug", "limit", "disagreement"), [("acceptance_too_generous", 25_000, 1.8), ("draft_leak", 60_000, 2.2)]
)
def test_small_bug_is_rejected_and_named(bug, limit, disagreement, make_simulator):
    simulator = make_simulator(disagreement=disagreement)
    wealth = tokens_until_rejection(simulator, bug, limit=limit, rounds=1000)
    assert wealth.tokens_until_rejection <= limit
    # Laws that are nearly target + small * draft look alike: the name needs as many tokens again.
    rng = np.random.default_rng(99)
    for _ in range(wealth.num_tokens // 2500):
        wealth.update(simulator(rng, 1000, bug))
    assert diagnose(wealth).name == bug


def test_a_correct_decoder_is_not_rejected(make_simulator):
    wealth = tokens_until_rejection(make_simulator(), "", limit=20_000, rounds=2000)
    assert not wealth.rejected
    assert not wealth.informed.rejected


def test_without_the_right_hypothesis_the_bug_costs_many_more_tokens(make_simulator):
    simulator, bug = make_simulator(), "accept_without_coin"
    own = tokens_until_rejection(simulator, bug, limit=20_000)
    generic = [each for each in library() if each.name in ("draft_leak", "uniform_leak", "sharpened", "flattened")]
    without = tokens_until_rejection(simulator, bug, limit=20_000, hypotheses=generic, learners=[], rounds=2000)
    assert own.tokens_until_rejection < 200
    assert not without.rejected


def test_offsets_tell_a_bonus_bug_from_a_draft_bug(make_simulator):
    evidence = make_simulator()(np.random.default_rng(5), 1500, "bonus_from_draft")
    wealth = Wealth(alpha=ALPHA)
    wealth.update(evidence)
    assert wealth.informed.tokens_until_rejection < wealth.blind.tokens_until_rejection
    assert diagnose(wealth, informed=True).name == "bonus_from_draft"
    assert diagnose(wealth, informed=True).odds > 1e6
    assert max(diagnose(wealth, informed=True).roles.items(), key=lambda item: item[1])[0] == "bonus"


def test_equal_laws_are_reported_as_alike_without_offsets(make_simulator):
    evidence = make_simulator()(np.random.default_rng(5), 300, "unprocessed")
    wealth = Wealth(alpha=ALPHA)
    wealth.update(
        TokenEvidence(
            target_probs=evidence.target_probs,
            token_ids=evidence.token_ids,
            alternatives=evidence.alternatives,
        )
    )
    diagnosis = diagnose(wealth)
    assert diagnosis.name == "unprocessed"
    assert diagnosis.alike == ("bonus_unprocessed",)
    assert "odds" in str(diagnosis)


@pytest.mark.parametrize("wrong", ["token", "sharper"])
def test_learners_find_what_no_hypothesis_describes(wrong):
    rng = np.random.default_rng(6)
    target = rng.dirichlet(np.full(16, 0.5), 12_000)
    emitted = target.copy()
    if wrong == "token":
        emitted[:, 3] *= 0.5
    else:
        emitted **= 1.3
    emitted /= emitted.sum(axis=1, keepdims=True)
    tokens = (np.cumsum(emitted, axis=1) <= rng.random((len(emitted), 1))).sum(axis=1)
    wealth = Wealth([], alpha=ALPHA)
    wealth.update(TokenEvidence(target_probs=target, token_ids=tokens))
    assert wealth.rejected
    assert diagnose(wealth).name == {"token": "learned_tokens", "sharper": "learned_sharpness"}[wrong]


def test_the_split_into_batches_does_not_change_the_wealth_of_the_library(make_simulator):
    evidence = make_simulator()(np.random.default_rng(7), 500, "residual_not_subtracted")
    whole, parts = Wealth(alpha=ALPHA, learners=[]), Wealth(alpha=ALPHA, learners=[])
    whole.update(evidence)
    for piece in evidence.chunks(37):
        parts.update(piece)
    assert whole.tokens_until_rejection == parts.tokens_until_rejection
    np.testing.assert_allclose(whole.blind.log_wealth_of, parts.blind.log_wealth_of, atol=1e-9)
    assert whole.log_wealth == pytest.approx(parts.log_wealth)


def test_the_curve_is_thin_and_ends_at_the_present(make_simulator):
    wealth = Wealth(alpha=ALPHA)
    for _ in range(40):
        wealth.update(make_simulator(vocab_size=8)(np.random.default_rng(8), 37))
    curve = wealth.blind.curve
    assert len(curve) <= 201
    assert curve[0] == (0, 0.0)
    assert curve[-1] == (wealth.num_tokens, wealth.log_wealth)
    steps = np.diff([tokens for tokens, _ in curve[:-1]])
    assert len(set(steps)) == 1


def test_a_vocabulary_of_50000_is_judged():
    rng = np.random.default_rng(9)
    target = rng.dirichlet(np.full(50_000, 0.01), 24)
    draft = np.roll(target, 1, axis=0)
    tokens = draft.argmax(axis=1)
    wealth = Wealth(alpha=ALPHA)
    wealth.update(TokenEvidence(target_probs=target + 1e-30, token_ids=tokens, draft_probs=draft))
    assert wealth.rejected


def test_tokens_that_the_target_excludes_promise_nothing_about_the_others():
    # 32 tokens under top-k once passed for enough: a uniform leak is seen at once by what top-k excludes.
    rng = np.random.default_rng(9)
    target = np.zeros((32, 64))
    target[:, :4] = rng.dirichlet(np.ones(4), 32)
    evidence = TokenEvidence(target_probs=target, token_ids=[int(rng.choice(64, p=law)) for law in target])
    moments, wealth = Moments(library()), Wealth(alpha=1e-7)
    moments.update(evidence)
    wealth.update(evidence)
    assert moments.smallest_visible_leak("uniform_leak", wealth=wealth, num_tokens=32) is None

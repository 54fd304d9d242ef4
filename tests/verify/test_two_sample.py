"""Two decoders against each other: the bets are fair where the laws are one, and win where a planted bug makes them two."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from verify.betting.evidence import Floats
from verify.checks.two_sample import MEASURES, _Bettor, judge_same_greedy, judge_two_samples
from verify.results import Verdict

VOCAB_SIZE = 24
NUM_PROMPTS = 10
ALPHA = 1e-6


def laws(seed: int) -> Floats:
    """The next token's law after each token, [V, V]."""
    logits = np.random.default_rng(seed).normal(size=(VOCAB_SIZE, VOCAB_SIZE)) * 1.5
    weights = np.exp(logits)
    law: Floats = weights / weights.sum(axis=1, keepdims=True)
    return law


TARGET_PROBS = laws(0)
DRAFT_PROBS = np.sqrt(TARGET_PROBS * laws(1))
DRAFT_PROBS /= DRAFT_PROBS.sum(axis=1, keepdims=True)
COLD_PROBS = TARGET_PROBS ** (1 / 0.7)
COLD_PROBS /= COLD_PROBS.sum(axis=1, keepdims=True)


def outputs(generator: np.random.Generator, *, repeats: int, length: int = 12, bug: str = "") -> list[list[list[int]]]:
    """Outputs of each prompt. Bugs: every third token is the draft's; temperature forgotten; a last token lost now and then."""
    found = []
    for prompt in range(NUM_PROMPTS):
        of_prompt = []
        for _ in range(repeats):
            text = [prompt]
            for position in range(length):
                law = COLD_PROBS if bug == "temperature" else TARGET_PROBS
                law = DRAFT_PROBS if bug == "bonus" and position % 3 == 2 else law
                text.append(int(generator.choice(VOCAB_SIZE, p=law[text[-1]])))
            cut = bug == "lost token" and generator.random() < 0.3
            of_prompt.append(text[1 : -1 if cut else None])
        found.append(of_prompt)
    return found


def test_one_law_passes_and_says_what_it_would_have_seen() -> None:
    """The same decoder twice."""
    generator = np.random.default_rng(2)
    finding = judge_two_samples(outputs(generator, repeats=40), outputs(generator, repeats=40), alpha=ALPHA)
    assert finding.verdict is Verdict.PASS
    assert finding.observations == 400
    assert finding.smallest_visible == pytest.approx(4 * math.log(1 / ALPHA) / (400 * math.log(2)))


@pytest.mark.parametrize("bug", ["bonus", "temperature", "lost token"])
def test_a_planted_bug_is_seen(bug: str) -> None:
    """And told by what: the tables are known to nobody."""
    generator = np.random.default_rng(3)
    ours, baseline = outputs(generator, repeats=40, bug=bug), outputs(generator, repeats=40)
    finding = judge_two_samples(ours, baseline, alpha=ALPHA)
    assert finding.verdict is Verdict.FAIL
    assert "told apart after" in finding.reason
    assert any(name in finding.diagnosis for name in MEASURES)


def test_the_share_that_is_promised_is_seen() -> None:
    """A token that the model never writes, in as many outputs as `smallest_visible` says."""
    generator = np.random.default_rng(4)
    for _ in range(2):
        ours, baseline = outputs(generator, repeats=32), outputs(generator, repeats=32)
        share = judge_two_samples(ours, baseline, alpha=ALPHA).smallest_visible
        assert share is not None
        assert share < 0.25
        for of_prompt in ours:
            for output in of_prompt:
                if generator.random() < share:
                    output[5] = VOCAB_SIZE
        assert judge_two_samples(ours, baseline, alpha=ALPHA).verdict is Verdict.FAIL


def test_a_bet_is_fair_whatever_was_learned() -> None:
    """Mean of the factors of a pair and of the same pair the other way round: 1, exactly, at every step."""
    generator = np.random.default_rng(5)
    bettor = _Bettor(learning_rate=0.3)
    for _ in range(50):
        difference = generator.normal(size=len(MEASURES)) * 10 + 3
        twins = [
            _Bettor(
                learning_rate=0.3,
                num_bets=bettor.num_bets,
                weights=bettor.weights.copy(),
                squares=bettor.squares.copy(),
                gradients=bettor.gradients.copy(),
            )
            for _ in range(2)
        ]
        for twin, sign in zip(twins, (1, -1), strict=True):
            twin.bet(sign * difference)
        assert np.mean([math.exp(twin.log_wealth) for twin in twins]) == pytest.approx(1.0, abs=1e-12)
        bettor.bet(difference)


def test_wealth_is_a_martingale_where_the_laws_are_one() -> None:
    """100 comparisons of one decoder with itself: 1/alpha is reached in no more than a share alpha of them, up to chance."""
    generator = np.random.default_rng(6)
    alpha = 0.2
    rejections = sum(
        judge_two_samples(
            outputs(generator, repeats=2, length=4), outputs(generator, repeats=2, length=4), alpha=alpha
        ).verdict
        is Verdict.FAIL
        for _ in range(100)
    )
    assert binom.sf(rejections - 1, 100, alpha) > 1e-3


def test_too_few_pairs_are_no_verdict() -> None:
    """Nothing, and next to nothing, prove nothing."""
    generator = np.random.default_rng(7)
    few = judge_two_samples(outputs(generator, repeats=2), outputs(generator, repeats=2), alpha=ALPHA)
    assert few.verdict is Verdict.INCONCLUSIVE
    assert "too few" in few.reason
    none = judge_two_samples([[] for _ in range(3)], [[[1]] for _ in range(3)], alpha=ALPHA)
    assert none.verdict is Verdict.INCONCLUSIVE
    with pytest.raises(ValueError, match="alpha is 2"):
        judge_two_samples([], [], alpha=2)


def test_greedy_outputs_are_the_same_or_are_told() -> None:
    """A prompt on which the baseline differs from itself is no evidence."""
    assert judge_same_greedy([[1, 2], [3]], [[1, 2], [3]]).verdict is Verdict.PASS
    finding = judge_same_greedy([[1, 2], [3, 5]], [[1, 2], [3, 4]])
    assert finding.verdict is Verdict.INCONCLUSIVE  # near ties move with the shape of a forward
    assert (
        "1 of 2 greedy outputs differ from the baseline's, first that of prompt 1 from output position 1 on"
        in finding.reason
    )
    excused = judge_same_greedy([[1, 2], [3, 5]], [[1, 2], [3, 4]], baseline_again=[[1, 2], [3, 6]])
    assert excused.verdict is Verdict.PASS
    assert excused.observations == 1
    assert "on 1 more the baseline differs from itself" in excused.reason
    assert judge_same_greedy([], []).verdict is Verdict.INCONCLUSIVE

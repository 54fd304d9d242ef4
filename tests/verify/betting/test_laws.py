"""Every law of the library is a law, the same read whole or at the emitted token, and that of the mistake it names."""

import numpy as np
import pytest

from verify.betting.evidence import TokenEvidence
from verify.betting.hypotheses import Hypothesis, emitted_ratios
from verify.betting.library import ALTERNATIVES, ALTERNATIVES_OF_ROUNDS, explanations_of_rounds, library
from verify.betting.wealth import Wealth


def some_evidence(rng, vocab_size=7):
    """Random laws, and the degenerate ones: equal, disjoint, one-hot, with zeros under draft mass."""
    random = rng.dirichlet(np.full(vocab_size, 0.5), 40)
    zeroed = random.copy()
    zeroed[:, ::2] = 0
    zeroed /= zeroed.sum(axis=1, keepdims=True)
    one_hot = np.eye(vocab_size)[rng.integers(vocab_size, size=40)]
    pairs = [(random, np.roll(random, 1, axis=0)), (random, random), (zeroed, 1 / vocab_size * np.ones_like(random))]
    pairs += [(random, one_hot), (one_hot, random), (one_hot, np.roll(one_hot, 1, axis=1))]
    target, draft = (np.concatenate(each) for each in zip(*pairs, strict=True))
    tokens = np.array([rng.choice(vocab_size, p=law) for law in target])
    others = {
        name: rng.dirichlet(np.ones(vocab_size), len(target)) for name in (*ALTERNATIVES, *ALTERNATIVES_OF_ROUNDS)
    }
    return TokenEvidence(target_probs=target, token_ids=tokens, draft_probs=draft, alternatives=others)


@pytest.mark.parametrize("hypothesis", [*library(), *explanations_of_rounds()], ids=lambda each: each.label)
def test_law_is_a_law_and_agrees_at_the_emitted_token(hypothesis):
    evidence = some_evidence(np.random.default_rng(0))
    law = hypothesis.law(evidence)
    assert np.isfinite(law).all()
    assert law.min() >= 0
    np.testing.assert_allclose(law.sum(axis=1), 1, atol=1e-12)
    rows = np.arange(evidence.num_tokens)
    expected = law[rows, evidence.token_ids] / evidence.target_probs[rows, evidence.token_ids]
    np.testing.assert_allclose(emitted_ratios((hypothesis,), evidence)[0], expected, rtol=1e-9)


def test_a_law_that_does_not_sum_to_one_would_be_caught():
    unnormalised = Hypothesis(name="x", family="X", explanation="", formula=lambda rows: 1.1 * rows.target, needs=())
    law = unnormalised.law(some_evidence(np.random.default_rng(0)))
    assert abs(law.sum(axis=1) - 1).max() > 0.05


def test_hypotheses_without_their_laws_sit_out():
    evidence = TokenEvidence(target_probs=np.full((2, 4), 0.25), token_ids=np.array([0, 3]))
    absent = [each.label for each in library() if each.law(evidence) is None]
    assert "residual_not_subtracted" in absent
    assert "unprocessed" in absent
    assert "uniform_leak" not in absent


def test_labels_are_unique_and_every_name_explains_itself_once():
    known = (*library(), *explanations_of_rounds())
    labels = [each.label for each in known]
    assert len(set(labels)) == len(labels)
    texts = {(each.name, each.family, each.explanation) for each in known}
    assert len(texts) == len({each.name for each in known})


def test_no_bet_looks_at_where_a_round_began():
    """A correct rule may begin its rounds where later tokens say; `block-verification` is such a control."""
    assert not {need for each in library() for need in each.needs} & set(ALTERNATIVES_OF_ROUNDS)
    assert {need for each in explanations_of_rounds() for need in each.needs} <= {"draft", *ALTERNATIVES_OF_ROUNDS}


PLANTED = [
    "accept_without_coin",
    "acceptance_too_generous",
    "draft_token_0_lost",
    "residual_not_subtracted",
    "recovered_from_draft",
    "residual_absolute",
    "residual_softmax",
    "residual_argmax",
    "greedy_draft_as_soft",
    "everything_accepted",
    "bonus_from_draft",
    "bonus_unprocessed",
    "unprocessed",
]


@pytest.mark.parametrize("bug", PLANTED)
def test_a_decoder_with_the_mistake_follows_the_law_of_its_hypothesis(bug, make_simulator):
    # With that law in the place of the target a decoder that has the mistake must look lossless, and with the target not.
    evidence = make_simulator(vocab_size=12, num_draft_tokens=2)(np.random.default_rng(1), 6000, bug)
    variant = {"acceptance_too_generous": "acceptance_too_generous[ratio plus 0.02]"}.get(bug, bug)
    hypothesis = next(each for each in library() if each.label == variant)
    acts = np.isin(evidence.draft_offsets, {"draft": [0, 1], "bonus": [2], "any": [0, 1, 2]}[hypothesis.place])

    def judged(reference):
        wealth = Wealth(alpha=1e-4)
        wealth.update(
            TokenEvidence(
                target_probs=reference[acts],
                token_ids=evidence.token_ids[acts],
                draft_probs=evidence.draft_probs[acts],
            )
        )
        return wealth

    assert not judged(hypothesis.law(evidence)).rejected
    if bug not in ("acceptance_too_generous", "bonus_unprocessed"):  # too small for this many tokens
        assert judged(evidence.target_probs).rejected

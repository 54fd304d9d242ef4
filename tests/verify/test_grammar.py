"""Grammars: the walk of an output, the reference's masks, and the check that sees a token outside."""

import pytest
import torch

from verify.checks.grammar import judge_grammar
from verify.coverage import Coverage
from verify.grammar import TokenAutomaton, first_violation, possible_tokens
from verify.models.law import next_token_laws
from verify.protocol import Generation, Request, SamplingParams, claims_needed
from verify.results import Verdict
from verify.subject import Observed, describe

# 0, then 1s, then 2; behind 2 only a stop.
GRAMMAR = TokenAutomaton({0: {0: 1}, 1: {1: 1, 2: 2}, 2: {}}, final=frozenset({2}))
REQUEST = Request(
    prompt_token_ids=(3,), max_new_tokens=5, stop_token_ids=(4,), sampling=SamplingParams(grammar=GRAMMAR)
)


def test_what_is_possible() -> None:
    assert possible_tokens(GRAMMAR, 1, (4,)) == {1, 2}
    assert possible_tokens(GRAMMAR, 2, (4,)) == {4}


@pytest.mark.parametrize(
    ("output", "violation"),
    [((0, 1, 1, 2, 4), None), ((0, 1, 1), None), ((1,), 0), ((0, 4), 1), ((0, 2, 2), 2), ((0, 1, 0), 2)],
)
def test_the_walk_of_an_output(output: tuple[int, ...], violation: int | None) -> None:
    assert first_violation(REQUEST, output) == violation
    assert first_violation(Request(prompt_token_ids=(3,), max_new_tokens=5), output) is None


def test_a_state_without_a_way_out_is_refused() -> None:
    with pytest.raises(ValueError, match="state 1 has no transition and is not final"):
        TokenAutomaton({0: {0: 1}})


def test_the_reference_masks_every_row() -> None:
    logits = torch.zeros(5, 6, dtype=torch.float64)
    laws = next_token_laws(logits, REQUEST, (0, 1, 2, 4))
    support = [row.nonzero().flatten().tolist() for row in laws]
    assert support == [[0], [1, 2], [1, 2], [4], list(range(6))]


def test_a_request_with_a_grammar_is_described_and_needs_the_claim() -> None:
    assert "grammar" in claims_needed(REQUEST)
    assert "TokenAutomaton" in describe(REQUEST)["sampling"]["grammar"]


@pytest.mark.parametrize(("output", "verdict"), [((0, 1, 1, 1, 2), Verdict.PASS), ((0, 1, 0, 1, 2), Verdict.FAIL)])
def test_the_check(output: tuple[int, ...], verdict: Verdict) -> None:
    answer = Observed(REQUEST, Generation(token_ids=output, finish_reason="length"), None)
    finding = judge_grammar([answer], coverage=Coverage())
    assert finding.verdict is verdict
    if verdict is Verdict.FAIL:
        assert "token 0 at output position 2 is impossible under the grammar, which leaves [1, 2]" in finding.reason
    assert judge_grammar([answer], coverage=Coverage(), required_paths=["fully accepted"]).verdict is (
        verdict if verdict is Verdict.FAIL else Verdict.INCONCLUSIVE
    )

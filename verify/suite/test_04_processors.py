"""Chapter 4: processors see the true history inside a block; greedy, so that one wrong token is a bug."""

from typing import Any

import pytest

from verify.cases import EXACT_GRAMMARS, Case
from verify.checks.exact_law import judge_exact_law
from verify.checks.grammar import judge_grammar
from verify.checks.greedy_identity import judge_identity
from verify.grammar import TokenAutomaton
from verify.judge import Judge, check
from verify.models.pairs import Relation, TableSpec
from verify.results import Evidence
from verify.suite.support import PATIENCE, answered_until, greedy, prompts, request, scaled, table_subject

# A small vocabulary: the same tokens come again, so that penalties act inside a block.
SPEC = TableSpec(vocab_size=12, relation=Relation.CLOSE, seed=401, num_rows=4096)

# An opening token 0, then an even and an odd token in turn, until 11 closes; only then may a stop token come, and must.
PAIRS = TokenAutomaton(
    {
        0: {0: 1},
        1: dict.fromkeys((2, 4, 6, 8), 2) | {11: 3},
        2: dict.fromkeys((1, 3, 5, 7), 1),
        3: {},
    },
    final=frozenset({3}),
)

SETTINGS: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.6},
    "presence_penalty": {"presence_penalty": 1.1},
    "frequency_penalty": {"frequency_penalty": 0.7},
    "logit_bias": {"logit_bias": {0: 3.0, 5: -4.0, 7: 2.0}},
    "forbidden_tokens": {"forbidden_token_ids": (2, 3, 7)},
    "allowed_tokens": {"allowed_token_ids": (0, 1, 4, 6, 9)},
    "grammar": {"grammar": PAIRS, "stop_token_ids": (9, 10)},
    "min_new_tokens": {"min_new_tokens": 9, "stop_token_ids": (0, 1, 2, 3, 4, 5)},
}


@check(chapter=4, property="processors inside a block", evidence=Evidence.GREEDY)
@pytest.mark.parametrize("name", SETTINGS)
def test_history_inside_a_block(judge: Judge, name: str) -> None:
    """Row k of a block must be processed with prompt, output and the k drafts before it."""
    subject = table_subject(judge, SPEC)
    subject.require("greedy", name)
    asked = [
        greedy(prompt, max_new_tokens=18, num_draft_tokens=3, **SETTINGS[name])
        for prompt in prompts(judge, 16 * PATIENCE, vocab_size=SPEC.vocab_size)
    ]
    subject.require_for(asked[0])
    required = ("rejected at 0", "fully accepted") if subject.capabilities.draft_model else ()
    answers, coverage = answered_until(subject, asked, required=required, at_least=16)
    judge.conclude(judge_identity(subject, answers, floor=0.0, coverage=coverage, required_paths=required))


@check(chapter=4, property="grammar", evidence=Evidence.EXACT)
@pytest.mark.parametrize("case", EXACT_GRAMMARS, ids=lambda case: case.name)
def test_law_under_a_grammar(judge: Judge, case: Case) -> None:
    """The exact law where each row of a block is masked by the automaton's state after the drafts before it."""
    subject = table_subject(judge, case.spec)
    subject.require("sampled", "grammar")
    subject.require_for(case.requests[0])
    judge.conclude(judge_exact_law(subject, case))


@check(chapter=4, property="grammar", evidence=Evidence.CONTRACT, minimum_profile="default")
def test_outputs_obey_the_grammar(judge: Judge) -> None:
    """Every sampled output is a path of the automaton from its first token to its stop, wherever a block ended."""
    subject = table_subject(judge, SPEC)
    asked = [
        request(prompt, max_new_tokens=24, num_draft_tokens=4, temperature=1.3, grammar=PAIRS, stop_token_ids=(9, 10))
        for prompt in prompts(judge, 24 * PATIENCE, vocab_size=SPEC.vocab_size)
    ]
    subject.require_for(asked[0])
    required = ("rejected at 0", "fully accepted") if subject.capabilities.draft_model else ()
    answers, coverage = answered_until(subject, asked, required=required, at_least=scaled(judge, 24))
    judge.conclude(judge_grammar(answers, coverage=coverage, required_paths=required))

"""Chapter 6: the state after a round is what the accepted tokens alone would have left.

Every row of these targets depends on every token and position held in the cache, so that a stale, missing or misplaced
entry changes everything after it.
"""

import pytest

from verify.cases import EXACT_RECURRENT, Case
from verify.checks.exact_law import judge_exact_law
from verify.checks.greedy_identity import judge_identity
from verify.coverage import rejections_and_full_acceptance
from verify.judge import Judge, check
from verify.models.pairs import Relation, TableSpec
from verify.results import Evidence
from verify.suite.support import PATIENCE, answered, answered_until, greedy, prompts, scaled, table_subject

SPEC = TableSpec(vocab_size=48, relation=Relation.CLOSE, seed=601, num_rows=4096, sharpness=2.5)
SHORT = TableSpec(vocab_size=48, relation=Relation.CLOSE, seed=602, num_rows=4096, sharpness=2.5, max_positions=24)
SHORT_DRAFT = TableSpec(
    vocab_size=48, relation=Relation.CLOSE, seed=604, num_rows=4096, sharpness=2.5, draft_max_positions=16
)
RECURRENT = TableSpec(vocab_size=4, relation=Relation.CLOSE, seed=606, num_rows=4096, sharpness=2.5, recurrent=True)
LOOKUP = TableSpec(vocab_size=6, relation=Relation.CLOSE, seed=603, history="window", window=2, num_rows=36)


@check(chapter=6, property="rollback", evidence=Evidence.GREEDY)
@pytest.mark.parametrize("num_draft_tokens", [4, 6])
def test_rollback(judge: Judge, num_draft_tokens: int) -> None:
    """Long outputs with a rejection at every offset: nothing of a rejected draft may stay."""
    subject = table_subject(judge, SPEC)
    subject.require("greedy", "draft_model")
    asked = [
        greedy(prompt, max_new_tokens=64, num_draft_tokens=num_draft_tokens)
        for prompt in prompts(judge, 16 * PATIENCE, vocab_size=SPEC.vocab_size)
    ]
    required = rejections_and_full_acceptance(num_draft_tokens)
    answers, coverage = answered_until(subject, asked, required=required, at_least=16)
    judge.conclude(judge_identity(subject, answers, floor=0.0, coverage=coverage, required_paths=required))


@check(chapter=6, property="prompt of one token", evidence=Evidence.GREEDY)
def test_prompt_of_one_token(judge: Judge) -> None:
    """Nothing to prefill before the anchor."""
    subject = table_subject(judge, SPEC)
    subject.require("greedy")
    asked = [greedy((token_id,), max_new_tokens=12) for token_id in range(scaled(judge, 12))]
    answers, coverage = answered(subject, asked)
    judge.conclude(judge_identity(subject, answers, floor=0.0, coverage=coverage))


@check(chapter=6, property="context limit", evidence=Evidence.GREEDY)
@pytest.mark.parametrize("distance", [0, 1, 2])
def test_context_limit(judge: Judge, distance: int) -> None:
    """The output may fill the context to its last position although a whole block would not fit any more."""
    subject = table_subject(judge, SHORT)
    subject.require("greedy")
    asked = [
        greedy(prompt, max_new_tokens=SHORT.max_positions - distance - len(prompt), num_draft_tokens=4)
        for prompt in prompts(judge, scaled(judge, 8), vocab_size=SHORT.vocab_size)
    ]
    answers, coverage = answered(subject, asked)
    judge.conclude(judge_identity(subject, answers, floor=0.0, coverage=coverage))


@check(chapter=6, property="context limit", evidence=Evidence.GREEDY)
def test_draft_with_a_shorter_context(judge: Judge) -> None:
    """Texts that outgrow the context of the draft, or begin beyond it: there it sees a window or proposes nothing."""
    subject = table_subject(judge, SHORT_DRAFT)
    subject.require("greedy", "draft_model")
    asked = [
        greedy(prompt, max_new_tokens=20 + index % 3, num_draft_tokens=4)
        for index, prompt in enumerate(
            prompts(judge, 6 * PATIENCE, vocab_size=SHORT_DRAFT.vocab_size, lengths=(1, 17, 5, 16, 15, 24))
        )
    ]
    required = ("rejected at 0", "fully accepted")
    answers, coverage = answered_until(subject, asked, required=required, at_least=6)
    if subject.capabilities.batch:
        answers += subject.generate_together(asked[:6])
    judge.conclude(judge_identity(subject, answers, floor=0.0, coverage=coverage, required_paths=required))


@check(chapter=6, property="rounds without a draft", evidence=Evidence.GREEDY)
def test_rounds_without_a_draft(judge: Judge) -> None:
    """A drafter that sometimes proposes nothing (prompt lookup without a match) must not disturb the rounds around it."""
    subject = table_subject(judge, LOOKUP)
    subject.require("greedy")
    asked = [
        greedy(prompt, max_new_tokens=40, num_draft_tokens=3)
        for prompt in prompts(judge, scaled(judge, 12), vocab_size=LOOKUP.vocab_size)
    ]
    answers, coverage = answered(subject, asked)
    judge.conclude(judge_identity(subject, answers, floor=0.0, coverage=coverage))


@check(chapter=6, property="calls are independent", evidence=Evidence.GREEDY)
def test_calls_are_independent(judge: Judge) -> None:
    """The same request before and after others gives the same output: no state survives a call."""
    subject = table_subject(judge, SPEC)
    subject.require("greedy")
    first, *others = [greedy(prompt, max_new_tokens=20) for prompt in prompts(judge, 6, vocab_size=SPEC.vocab_size)]
    answers, coverage = answered(subject, [first, *others, first, others[0], first])
    judge.conclude(judge_identity(subject, answers, floor=0.0, coverage=coverage))


@check(chapter=6, property="shared prefixes", evidence=Evidence.GREEDY)
def test_next_turns(judge: Judge) -> None:
    """Requests that go on behind an answer that a stop token ended: what was drafted in its place, or behind it, is no text."""
    subject = table_subject(judge, SPEC)
    subject.require("greedy", "stop_tokens")
    asked = []
    for prompt in prompts(judge, 4, vocab_size=SPEC.vocab_size, lengths=(9,)):
        text = subject.reference.greedy(greedy(prompt, max_new_tokens=12))
        for stop in dict.fromkeys(text[1:]):
            turn = (*prompt, *text[: text.index(stop) + 1])
            other = (stop + 1) % SPEC.vocab_size
            asked.append(greedy(prompt, max_new_tokens=12, stop_token_ids=(stop,)))
            asked.append(greedy((*turn, other, other), max_new_tokens=8))
    answers, coverage = answered(subject, asked)
    judge.conclude(judge_identity(subject, answers, floor=0.0, coverage=coverage))


@check(chapter=6, property="shared prefixes", evidence=Evidence.GREEDY)
def test_shared_prefixes(judge: Judge) -> None:
    """Requests that begin as earlier ones did, to the same, a shorter and a longer point: what is reused must be their own."""
    subject = table_subject(judge, SPEC)
    subject.require("greedy")
    asked = []
    for prompt in prompts(judge, 3, vocab_size=SPEC.vocab_size, lengths=(9,)):
        first = greedy(prompt, max_new_tokens=12)
        text = (*prompt, *subject.reference.greedy(first))
        other = (text[-1] + 1) % SPEC.vocab_size
        for length in (len(prompt) + 5, len(prompt), len(prompt) - 4, len(text)):
            branch = greedy((*text[:length], other, other, other), max_new_tokens=10)
            asked += [first, branch, greedy(text[:length], max_new_tokens=10)]
    answers, coverage = answered(subject, [*asked, *asked[::-1]])
    judge.conclude(judge_identity(subject, answers, floor=0.0, coverage=coverage))


@check(chapter=6, property="recurrent state", evidence=Evidence.GREEDY)
def test_recurrent_state(judge: Judge) -> None:
    """A target with a state that cannot be cropped: after a rejection it must be what the accepted tokens alone make of it."""
    subject = table_subject(judge, RECURRENT)
    subject.require("greedy", "draft_model", "recurrent_targets")
    asked = [
        greedy(prompt, max_new_tokens=24, num_draft_tokens=2)
        for prompt in prompts(judge, 6 * PATIENCE, vocab_size=RECURRENT.vocab_size)
    ]
    required = rejections_and_full_acceptance(2)
    answers, coverage = answered_until(subject, asked, required=required, at_least=6)
    judge.conclude(judge_identity(subject, answers, floor=0.0, coverage=coverage, required_paths=required))


@check(chapter=6, property="recurrent state", evidence=Evidence.EXACT)
@pytest.mark.parametrize("case", EXACT_RECURRENT, ids=lambda case: case.name)
def test_law_of_a_recurrent_target(judge: Judge, case: Case) -> None:
    """The exact law over such a target."""
    subject = table_subject(judge, case.spec)
    subject.require("sampled", "recurrent_targets")
    judge.conclude(judge_exact_law(subject, case))

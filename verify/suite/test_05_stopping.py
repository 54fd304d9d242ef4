"""Chapter 5: the output ends exactly where it must, at every offset of a block.

The intake rejects tokens after a stop, early ends, overshoots and wrong finish reasons; these checks bring the situations.
"""

from collections.abc import Sequence

import pytest

from verify.checks.greedy_identity import judge_identity
from verify.judge import Judge, check
from verify.models.pairs import Relation, TableSpec
from verify.protocol import Request
from verify.results import Evidence
from verify.subject import Subject
from verify.suite.support import answered, greedy, prompts, scaled, table_subject

NUM_DRAFT_TOKENS = 3
BLOCKS = 2 * (NUM_DRAFT_TOKENS + 1)
SAME = TableSpec(vocab_size=64, relation=Relation.SAME, seed=501, num_rows=4096)
CLOSE = TableSpec(vocab_size=64, relation=Relation.CLOSE, seed=502, num_rows=4096, sharpness=2.0)
OPPOSED = TableSpec(vocab_size=64, relation=Relation.OPPOSED, seed=503, num_rows=4096)
DISJOINT = TableSpec(vocab_size=64, relation=Relation.DISJOINT, seed=504, num_rows=4096)


@check(chapter=5, property="exact length", evidence=Evidence.CONTRACT)
@pytest.mark.parametrize("spec", [SAME, CLOSE], ids=lambda spec: spec.relation)
def test_every_length(judge: Judge, spec: TableSpec) -> None:
    """`max_new_tokens` of 1 to two blocks and more, without a stop token: exactly that many tokens."""
    subject = table_subject(judge, spec)
    subject.require("greedy")
    (prompt,) = prompts(judge, 1, vocab_size=spec.vocab_size, lengths=(4,))
    asked = [
        greedy(prompt, max_new_tokens=length, num_draft_tokens=NUM_DRAFT_TOKENS) for length in range(1, BLOCKS + 3)
    ]
    conclude(judge, subject, asked)


@check(chapter=5, property="stop at every offset", evidence=Evidence.CONTRACT)
@pytest.mark.parametrize("spec", [SAME, CLOSE, OPPOSED], ids=lambda spec: spec.relation)
def test_stop_at_every_offset(judge: Judge, spec: TableSpec) -> None:
    """The stop token falls on every offset of two blocks: as accepted, recovered and bonus token."""
    subject = table_subject(judge, spec)
    subject.require("greedy", "stop_tokens")
    conclude(judge, subject, stopping_requests(judge, subject, extra=6))


@check(chapter=5, property="stop beats length", evidence=Evidence.CONTRACT)
def test_stop_on_the_last_token(judge: Judge) -> None:
    """A stop token that is also the last allowed token gives finish_reason "stop"."""
    subject = table_subject(judge, SAME)
    subject.require("greedy", "stop_tokens")
    conclude(judge, subject, stopping_requests(judge, subject, extra=0))


@check(chapter=5, property="rejected stop token", evidence=Evidence.CONTRACT)
def test_rejected_stop_token(judge: Judge) -> None:
    """A stop token that the draft proposes and the target rejects stops nothing."""
    subject = table_subject(judge, DISJOINT)
    subject.require("greedy", "stop_tokens", "draft_model")
    asked = []
    for prompt in prompts(judge, scaled(judge, 12), vocab_size=DISJOINT.vocab_size):
        (drafted,) = subject.draft_reference.greedy(greedy(prompt, max_new_tokens=1))
        asked.append(
            greedy(prompt, max_new_tokens=BLOCKS, num_draft_tokens=NUM_DRAFT_TOKENS, stop_token_ids=(drafted,))
        )
    conclude(judge, subject, asked)


@check(chapter=5, property="minimum length", evidence=Evidence.CONTRACT)
def test_minimum_length(judge: Judge) -> None:
    """A stop token that would come at any offset before `min_new_tokens` is suppressed there, and works afterwards."""
    subject = table_subject(judge, SAME)
    subject.require("greedy", "stop_tokens", "min_new_tokens")
    asked = [
        greedy(
            each.prompt_token_ids,
            max_new_tokens=BLOCKS + 6,
            min_new_tokens=shortest,
            num_draft_tokens=NUM_DRAFT_TOKENS,
            stop_token_ids=each.stop_token_ids,
        )
        for each in stopping_requests(judge, subject, extra=0)
        for shortest in (each.max_new_tokens, each.max_new_tokens + 2)
    ]
    conclude(judge, subject, asked)


def stopping_requests(judge: Judge, subject: Subject, *, extra: int) -> list[Request]:
    """For every offset of two blocks a request whose greedy output meets its stop token there for the first time."""
    found: dict[int, Request] = {}
    for prompt in prompts(judge, 8, vocab_size=subject.models.vocab_size):
        output = subject.reference.greedy(greedy(prompt, max_new_tokens=BLOCKS))
        for offset, token_id in enumerate(output):
            if offset not in found and token_id not in output[:offset]:
                found[offset] = greedy(
                    prompt,
                    max_new_tokens=offset + 1 + extra,
                    num_draft_tokens=NUM_DRAFT_TOKENS,
                    stop_token_ids=(token_id,),
                )
    return [found[offset] for offset in sorted(found)]


def conclude(judge: Judge, subject: Subject, asked: Sequence[Request]) -> None:
    """Answer and compare; the intake has already enforced lengths and stops."""
    answers, coverage = answered(subject, asked)
    judge.conclude(judge_identity(subject, answers, floor=0.0, coverage=coverage))

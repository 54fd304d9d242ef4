"""Chapter 1: greedy decoding emits exactly the target's tokens; ties and rounding are told from bugs."""

import pytest

from verify.checks.controls import judge_draft_length_invariance
from verify.checks.greedy_identity import judge_identity
from verify.coverage import rejections_and_full_acceptance
from verify.judge import Judge, check
from verify.models.pairs import Relation, TableSpec
from verify.results import Evidence
from verify.suite.support import (
    PATIENCE,
    answered,
    answered_until,
    greedy,
    noise_floor,
    prompts,
    scaled,
    table_subject,
    trained_prompts,
    trained_subject,
)

SPECS = (
    TableSpec(vocab_size=64, relation=Relation.CLOSE, seed=101, num_rows=4096),
    TableSpec(vocab_size=64, relation=Relation.OPPOSED, seed=102, num_rows=4096),
    TableSpec(vocab_size=7, relation=Relation.UNRELATED, seed=103, num_rows=512),
    TableSpec(vocab_size=513, relation=Relation.PEAKED, seed=104, num_rows=512),
)
SHARP = TableSpec(vocab_size=32, relation=Relation.CLOSE, seed=105, num_rows=4096, sharpness=2.0)
CYCLE = TableSpec(vocab_size=8, relation=Relation.CLOSE, seed=106, history="window", window=2, num_rows=64)
LONG = TableSpec(vocab_size=64, relation=Relation.CLOSE, seed=108, num_rows=4096, sharpness=2.0, max_positions=1024)
LONG_LENGTH = 300
TIES = TableSpec(vocab_size=16, relation=Relation.CLOSE, seed=107, num_rows=4096, ties=True)


@check(chapter=1, property="greedy identity", evidence=Evidence.GREEDY)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_identity_on_tables(judge: Judge, spec: TableSpec) -> None:
    """Tables have no rounding, so one token that is not the arg max is a bug; every row depends on the whole cache."""
    subject = table_subject(judge, spec)
    subject.require("greedy")
    asked = [greedy(prompt) for prompt in prompts(judge, scaled(judge, 12), vocab_size=spec.vocab_size)]
    answers, coverage = answered(subject, asked)
    judge.conclude(judge_identity(subject, answers, floor=0.0, coverage=coverage))


@check(chapter=1, property="greedy identity", evidence=Evidence.GREEDY)
@pytest.mark.parametrize("num_draft_tokens", [1, 2, 3, 7])
def test_identity_by_draft_length(judge: Judge, num_draft_tokens: int) -> None:
    """Every draft length, with a rejection at every offset and full acceptance reached."""
    subject = table_subject(judge, SHARP)
    subject.require("greedy", "draft_model")
    asked = [
        greedy(prompt, max_new_tokens=24, num_draft_tokens=num_draft_tokens)
        for prompt in prompts(judge, 24 * PATIENCE, vocab_size=SHARP.vocab_size)
    ]
    required = rejections_and_full_acceptance(num_draft_tokens)
    answers, coverage = answered_until(subject, asked, required=required, at_least=24)
    judge.conclude(judge_identity(subject, answers, floor=0.0, coverage=coverage, required_paths=required))


@check(chapter=1, property="greedy identity", evidence=Evidence.GREEDY)
def test_identity_on_repetitive_text(judge: Judge) -> None:
    """A target that falls into a cycle: what prompt lookup needs in order to accept anything."""
    subject = table_subject(judge, CYCLE)
    subject.require("greedy")
    asked = [
        greedy(prompt, max_new_tokens=60)
        for prompt in prompts(judge, 8 * PATIENCE, vocab_size=CYCLE.vocab_size, lengths=(6, 12))
    ]
    required = ("rejected at 0", "fully accepted")
    answers, coverage = answered_until(subject, asked, required=required, at_least=8)
    judge.conclude(judge_identity(subject, answers, floor=0.0, coverage=coverage, required_paths=required))


@check(chapter=1, property="greedy identity", evidence=Evidence.GREEDY)
def test_identity_on_long_text(judge: Judge) -> None:
    """A prompt and an output of hundreds of tokens: past the pages of a cache and the chunks of a prefill."""
    subject = table_subject(judge, LONG)
    subject.require("greedy")
    (prompt,) = prompts(judge, 1, vocab_size=LONG.vocab_size, lengths=(LONG_LENGTH,))
    answers, coverage = answered(subject, [greedy(prompt, max_new_tokens=LONG_LENGTH)])
    judge.conclude(judge_identity(subject, answers, floor=0.0, coverage=coverage))


@check(chapter=1, property="greedy ties", evidence=Evidence.GREEDY)
def test_exact_ties(judge: Judge) -> None:
    """Where several tokens share the largest logit, any of them is the target's choice, and nothing else is."""
    subject = table_subject(judge, TIES)
    subject.require("greedy")
    asked = [greedy(prompt) for prompt in prompts(judge, scaled(judge, 16), vocab_size=TIES.vocab_size)]
    answers, coverage = answered(subject, asked)
    judge.conclude(judge_identity(subject, answers, floor=0.0, coverage=coverage))


@check(chapter=1, property="greedy identity", evidence=Evidence.GREEDY)
@pytest.mark.parametrize("num_draft_tokens", [1, 3, 5])
def test_identity_on_trained_pair(judge: Judge, num_draft_tokens: int) -> None:
    """A real target: near ties below the measured noise floor are counted, everything above is a bug."""
    subject = trained_subject(judge)
    subject.require("greedy")
    asked = [
        greedy(prompt, max_new_tokens=48, num_draft_tokens=num_draft_tokens)
        for prompt in trained_prompts(judge, scaled(judge, 10))
    ]
    answers, coverage = answered(subject, asked)
    required = ("rejected at 0", "fully accepted")
    floor = noise_floor(judge)
    judge.conclude(judge_identity(subject, answers, floor=floor, coverage=coverage, required_paths=required))


@check(chapter=1, property="greedy controls", evidence=Evidence.GREEDY)
def test_without_drafts(judge: Judge) -> None:
    """Control (a): the same loop with zero draft tokens is plain decoding."""
    subject = table_subject(judge, SHARP)
    subject.require("greedy", "zero_draft_tokens")
    asked = [
        greedy(prompt, num_draft_tokens=0) for prompt in prompts(judge, scaled(judge, 12), vocab_size=SHARP.vocab_size)
    ]
    answers, coverage = answered(subject, asked)
    judge.conclude(judge_identity(subject, answers, floor=0.0, coverage=coverage))


@check(chapter=1, property="greedy controls", evidence=Evidence.GREEDY)
def test_draft_length_invariance(judge: Judge) -> None:
    """Control (b): the output does not change with the number of draft tokens; where it does, the index tells why."""
    subject = trained_subject(judge)
    subject.require("greedy")
    chosen = [greedy(prompt, max_new_tokens=32) for prompt in trained_prompts(judge, scaled(judge, 6))]
    judge.conclude(judge_draft_length_invariance(subject, chosen, lengths=(1, 2, 4, 6), floor=noise_floor(judge)))

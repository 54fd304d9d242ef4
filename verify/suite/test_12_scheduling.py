"""Chapter 12: how many drafts are verified may depend on the text before a draft, never on the draft itself.

A decoder that weighs its drafts before it verifies them (confidence heads, thresholds, load) is lossless only if whether a
draft is verified is settled without looking at it. Else likely tokens are let through more often: with the target at 0.7 and a
search over the whole block, the paper's example emits 0.85 (DSpark, appendix A). Here the draft is sure of itself after some
tokens and lost after others, so a decision that looks ahead moves the law.
"""

from dataclasses import replace

import pytest

from verify.cases import EXACT_SCHEDULES, EXACT_SCHEDULES_OF_BATCHES, Case
from verify.checks.exact_law import judge_exact_law
from verify.checks.sampled_law import judge_sampled_law, seeded
from verify.checks.scheduling import judge_lengths
from verify.coverage import Coverage
from verify.judge import Judge, check
from verify.models.pairs import Relation, TableSpec
from verify.results import Evidence, Finding, Verdict
from verify.suite.support import prompts, request, scaled, table_subject

SPEC = TableSpec(vocab_size=24, relation=Relation.UNEVEN, seed=1201, num_rows=4096, sharpness=1.5)
ROWS_PER_CALL = 6


@check(chapter=12, property="admission", evidence=Evidence.EXACT)
@pytest.mark.parametrize("case", EXACT_SCHEDULES, ids=lambda case: case.name)
def test_admission(judge: Judge, case: Case) -> None:
    """The exact law where confidence depends on the drafts: one request."""
    subject = table_subject(judge, case.spec)
    subject.require("sampled")
    judge.conclude(suspecting_the_schedule(judge_exact_law(subject, case)))


@check(chapter=12, property="admission in a batch", evidence=Evidence.EXACT, minimum_profile="default")
@pytest.mark.parametrize("case", EXACT_SCHEDULES_OF_BATCHES, ids=lambda case: case.name)
def test_admission_in_a_batch(judge: Judge, case: Case) -> None:
    """Requests that compete for the same forward: what one drafts may shorten the other, and both keep their laws."""
    subject = table_subject(judge, case.spec)
    subject.require("sampled", "batch")
    judge.conclude(suspecting_the_schedule(judge_exact_law(subject, case)))


@check(chapter=12, property="sampled law under load", evidence=Evidence.BETTING, minimum_profile="default")
def test_sampled_law_of_batches(judge: Judge) -> None:
    """A vocabulary and a batch too large for the exact law: every token of every row is bet on."""
    subject = table_subject(judge, SPEC)
    subject.require("sampled", "batch")
    chosen = prompts(judge, scaled(judge, 16) * ROWS_PER_CALL, vocab_size=SPEC.vocab_size)
    asked = seeded(subject, [request(prompt, max_new_tokens=24, num_draft_tokens=4) for prompt in chosen])
    calls = [asked[start : start + ROWS_PER_CALL] for start in range(0, len(asked), ROWS_PER_CALL)]
    answers = (subject.generate_together(call) for call in calls)
    judge.conclude(judge_sampled_law(subject, answers, alpha=judge.alpha, coverage=Coverage()))


@check(chapter=12, property="lengths vary", evidence=Evidence.CONTRACT)
def test_lengths_vary(judge: Judge) -> None:
    """A decoder that claims to schedule really verifies blocks of unequal length: else the checks above saw no schedule."""
    subject = table_subject(judge, SPEC)
    subject.require("sampled", "scheduled")
    chosen = prompts(judge, scaled(judge, 24), vocab_size=SPEC.vocab_size)
    asked = seeded(subject, [request(prompt, max_new_tokens=16, num_draft_tokens=4) for prompt in chosen])
    judge.conclude(judge_lengths(subject.generate_each(asked)))


def suspecting_the_schedule(finding: Finding) -> Finding:
    """A failure here and not in chapter 2 has one likely cause; the laws of other bugs come after it."""
    if finding.verdict is not Verdict.FAIL:
        return finding
    cause = "if chapter 2 passes: whether a draft is verified depends on that draft or on later ones (SCHED); else: "
    return replace(finding, diagnosis=cause + finding.diagnosis)

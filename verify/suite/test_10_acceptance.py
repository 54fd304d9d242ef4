"""Chapter 10: what is accepted is what theory says, and what the decoder reports."""

import pytest

from verify.checks.acceptance import judge_acceptance_rate, judge_all_accepted, judge_speculation
from verify.checks.accounting import judge_record, judge_roles
from verify.judge import Judge, check
from verify.models.pairs import Relation, TableSpec
from verify.results import Evidence
from verify.suite.support import (
    answered,
    greedy,
    noise_of_acceptance,
    prompts,
    request,
    scaled,
    table_subject,
    trained_prompts,
    trained_subject,
)

SAME = TableSpec(vocab_size=32, relation=Relation.SAME, seed=1001, num_rows=4096)
CLOSE = TableSpec(vocab_size=32, relation=Relation.CLOSE, seed=1002, num_rows=4096, sharpness=1.5)
UNRELATED = TableSpec(vocab_size=32, relation=Relation.UNRELATED, seed=1003, num_rows=4096)
STOPS = tuple(range(0, 32, 6))
CYCLE = TableSpec(vocab_size=6, relation=Relation.SAME, seed=1004, history="window", window=2, num_rows=36)


@check(chapter=10, property="draft = target accepts everything", evidence=Evidence.CONTRACT)
@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_all_accepted(judge: Judge, temperature: float) -> None:
    """Any rejection shows that draft and target compute different laws for the same text."""
    subject = table_subject(judge, SAME)
    subject.require("greedy" if temperature == 0 else "sampled", "draft_model", "standard_acceptance")
    asked = [
        request(prompt, max_new_tokens=24, temperature=temperature)
        for prompt in prompts(judge, scaled(judge, 12), vocab_size=SAME.vocab_size)
    ]
    answers, _ = answered(subject, asked)
    judge.conclude(judge_all_accepted(answers))


@check(chapter=10, property="acceptance is 1 - TV", evidence=Evidence.BETTING)
@pytest.mark.parametrize("spec", [CLOSE, UNRELATED], ids=lambda spec: spec.relation)
def test_acceptance_rate(judge: Judge, spec: TableSpec) -> None:
    """Conditional acceptance at every position, against 1 - TV at the same contexts."""
    subject = table_subject(judge, spec)
    subject.require("sampled", "draft_model", "standard_acceptance")
    asked = [
        request(prompt, max_new_tokens=40, num_draft_tokens=4)
        for prompt in prompts(judge, scaled(judge, 48), vocab_size=spec.vocab_size)
    ]
    answers, _ = answered(subject, asked)
    judge.conclude(judge_acceptance_rate(subject, answers, alpha=judge.alpha))


@check(chapter=10, property="acceptance is 1 - TV", evidence=Evidence.BETTING, minimum_profile="default")
def test_acceptance_rate_of_trained_pair(judge: Judge) -> None:
    """The same on the real pair; what rounding moves is no evidence, most of all where the draft is as good as the target."""
    subject = trained_subject(judge)
    subject.require("sampled", "draft_model", "standard_acceptance")
    asked = [
        request(prompt, max_new_tokens=40, num_draft_tokens=5) for prompt in trained_prompts(judge, scaled(judge, 30))
    ]
    answers, _ = answered(subject, asked)
    tolerance = noise_of_acceptance(judge)
    judge.conclude(judge_acceptance_rate(subject, answers, alpha=judge.alpha, tolerance=tolerance))


@check(chapter=10, property="it speculates", evidence=Evidence.CONTRACT)
def test_speculates(judge: Judge) -> None:
    """Fewer target forwards than tokens, on text where drafts are good."""
    subject = table_subject(judge, CYCLE)
    subject.require("greedy")
    asked = [
        greedy(prompt, max_new_tokens=40) for prompt in prompts(judge, scaled(judge, 6), vocab_size=CYCLE.vocab_size)
    ]
    answers, _ = answered(subject, asked)
    judge.conclude(judge_speculation(answers))


@check(chapter=10, property="accounting", evidence=Evidence.CONTRACT)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_record(judge: Judge, temperature: float) -> None:
    """The reported record agrees with the output and with the rounds that the target saw."""
    subject = table_subject(judge, CLOSE)
    subject.require("greedy" if temperature == 0 else "sampled", "record")
    asked = [
        request(prompt, max_new_tokens=5 + index, num_draft_tokens=3, temperature=temperature)
        for index, prompt in enumerate(prompts(judge, scaled(judge, 24), vocab_size=CLOSE.vocab_size))
    ]
    answers, _ = answered(subject, asked)
    judge.conclude(judge_record(answers))


@check(chapter=10, property="accounting", evidence=Evidence.CONTRACT)
def test_record_of_stopped_requests(judge: Judge) -> None:
    """The same where a stop token cuts an accepted block: what stands behind it was not emitted, and does not count."""
    subject = table_subject(judge, SAME)
    subject.require("greedy", "record", "stop_tokens")
    asked = [
        greedy(prompt, max_new_tokens=24, num_draft_tokens=4, stop_token_ids=STOPS)
        for prompt in prompts(judge, scaled(judge, 24), vocab_size=SAME.vocab_size)
    ]
    answers, _ = answered(subject, asked)
    judge.conclude(judge_record(answers))


@check(chapter=10, property="accounting", evidence=Evidence.CONTRACT)
def test_record_in_a_batch(judge: Judge) -> None:
    """Each request of a batch is told its own counts."""
    subject = table_subject(judge, CLOSE)
    subject.require("greedy", "record", "batch")
    asked = [
        greedy(prompt, max_new_tokens=5 + 4 * index)
        for index, prompt in enumerate(prompts(judge, 6, vocab_size=CLOSE.vocab_size))
    ]
    judge.conclude(judge_record(subject.generate_together(asked)))


@check(chapter=10, property="accounting", evidence=Evidence.CONTRACT)
def test_roles(judge: Judge) -> None:
    """The reported roles agree with the rounds that the target saw."""
    subject = table_subject(judge, CLOSE)
    subject.require("sampled", "roles")
    asked = [
        request(prompt, max_new_tokens=16, num_draft_tokens=3)
        for prompt in prompts(judge, scaled(judge, 12), vocab_size=CLOSE.vocab_size)
    ]
    answers, _ = answered(subject, asked)
    judge.conclude(judge_roles(answers))

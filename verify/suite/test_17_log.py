"""Chapter 17: a log of generations (`--generations`), judged without running its engine."""

from verify.checks.log_audit import Audit
from verify.checks.log_contract import judge_contract, judge_readable, judge_records, judge_speculation_shown
from verify.checks.log_law import (
    judge_fresh,
    judge_greedy,
    judge_logged_logprobs,
    judge_reproduced,
    judge_sampled,
)
from verify.entrance import LOG
from verify.judge import Judge, check
from verify.results import Evidence
from verify.suite.support import trained_subject

AUDIT = "audit of the log"


def audited(judge: Judge) -> Audit:
    """The log against the target; lines are sorted out once a run."""
    if AUDIT not in judge.shared:
        judge.shared[AUDIT] = Audit(trained_subject(judge), judge.shared[LOG])
    audit: Audit = judge.shared[AUDIT]
    audit.subject.judge = judge
    return audit


@check(chapter=17, property="lines are readable", evidence=Evidence.CONTRACT)
def test_lines(judge: Judge) -> None:
    """Every line follows the schema and fits the target; a broken one is an error, and the others are judged still."""
    audit = audited(judge)
    for each in audit.lines:
        judge.log_generation(
            request=each.request, generation=each.answer.generation, models_name=audit.subject.models.name
        )
    judge.conclude(judge_readable(audit))


@check(chapter=17, property="stopping and lengths", evidence=Evidence.CONTRACT)
def test_contract(judge: Judge) -> None:
    """Nothing follows a stop token, lengths and finish reasons are right, every id is the target's."""
    judge.conclude(judge_contract(audited(judge)))


@check(chapter=17, property="greedy identity of the log", evidence=Evidence.GREEDY)
def test_greedy(judge: Judge) -> None:
    """Every greedy token is the target's arg max, or a near tie below the measured noise."""
    judge.conclude(judge_greedy(audited(judge)))


@check(chapter=17, property="sampled law of the log", evidence=Evidence.BETTING)
def test_sampled(judge: Judge) -> None:
    """Sampled tokens follow the target's law; lines that depend on each other count once."""
    judge.conclude(judge_sampled(audited(judge), alpha=judge.alpha))


@check(chapter=17, property="logged logprobs", evidence=Evidence.CONTRACT)
def test_logprobs(judge: Judge) -> None:
    """Log-probabilities are the target's at the emitted token."""
    judge.conclude(judge_logged_logprobs(audited(judge)))


@check(chapter=17, property="logged records", evidence=Evidence.CONTRACT)
def test_records(judge: Judge) -> None:
    """Acceptance records add up, and agree with the number of emitted tokens."""
    judge.conclude(judge_records(audited(judge)))


@check(chapter=17, property="logged seeds reproduce", evidence=Evidence.CONTRACT)
def test_seeds(judge: Judge) -> None:
    """The same request with the same seed has one output."""
    judge.conclude(judge_reproduced(audited(judge)))


@check(chapter=17, property="outputs without a seed are fresh", evidence=Evidence.BETTING)
def test_fresh(judge: Judge) -> None:
    """The same request without a seed has outputs of its own each time."""
    judge.conclude(judge_fresh(audited(judge), alpha=judge.alpha))


@check(chapter=17, property="speculation is shown", evidence=Evidence.CONTRACT)
def test_speculation(judge: Judge) -> None:
    """The log shows accepted and rejected drafts: else plain decoding would pass for speculation."""
    judge.conclude(judge_speculation_shown(audited(judge)))

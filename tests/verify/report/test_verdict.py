"""The order of verdicts: fail > incomplete > inconclusive > pass."""

from typing import Any

import pytest

from verify.report.schema import NotVerified
from verify.report.verdict import conclude
from verify.results import Verdict

PASS, FAIL, ERROR, WAIVED = Verdict.PASS, Verdict.FAIL, Verdict.ERROR, Verdict.WAIVED
UNSURE, ABSENT = Verdict.INCONCLUSIVE, Verdict.NOT_APPLICABLE


def missing(kind: Any, *, required: bool = True) -> NotVerified:
    return NotVerified(kind=kind, what="x", reason="why", required=required)


@pytest.mark.parametrize(
    ("verdicts", "gaps", "expected", "code"),
    [
        ([PASS, FAIL, ERROR, UNSURE], [missing("run")], "fail", 1),
        ([PASS, ERROR, UNSURE], [], "incomplete", 11),
        ([PASS, UNSURE], [missing("not_run")], "incomplete", 11),
        ([PASS, UNSURE], [missing("run")], "incomplete", 11),
        ([PASS, UNSURE], [missing("not_selected")], "incomplete", 11),
        ([PASS, UNSURE], [], "inconclusive", 10),
        ([UNSURE], [], "inconclusive", 10),
        ([PASS, WAIVED, ABSENT], [missing("capability", required=False)], "pass", 0),
        ([PASS], [missing("not_selected", required=False), missing("not_run", required=False)], "pass", 0),
        ([], [], "incomplete", 11),
        ([ABSENT, WAIVED], [], "incomplete", 11),
    ],
)
def test_the_worst_thing_decides(
    make_check: Any, verdicts: list[Verdict], gaps: list[NotVerified], expected: str, code: int
) -> None:
    for order in (verdicts, verdicts[::-1]):
        checks = [make_check(each, name=str(number)) for number, each in enumerate(order)]
        conclusion = conclude(checks, gaps)
        assert (conclusion.verdict, conclusion.exit_code) == (expected, code)
        assert conclusion.reason


def test_a_check_that_is_not_required_cannot_spoil_a_pass(make_check: Any) -> None:
    checks = [make_check(PASS), make_check(ERROR, required=False), make_check(UNSURE, required=False)]
    assert conclude(checks, []).verdict == "pass"
    assert conclude([*checks, make_check(FAIL, required=False)], []).verdict == "fail"


def test_allowing_a_partial_run_changes_its_exit_code_and_nothing_else(make_check: Any) -> None:
    partial = [missing("not_selected")]
    for verdict, code in ((PASS, 0), (UNSURE, 10), (ERROR, 11)):
        allowed = conclude([make_check(verdict)], partial, allow_partial=True)
        assert (allowed.verdict, allowed.exit_code) == ("incomplete", code)
    assert conclude([make_check(FAIL)], partial, allow_partial=True).verdict == "fail"
    assert conclude([make_check(PASS)], [*partial, missing("run")], allow_partial=True).exit_code == 11

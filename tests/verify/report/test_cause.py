"""Many failures have one cause; the reports say which, and where to begin."""

from pathlib import Path
from typing import Any

from verify.report.cause import probable_cause
from verify.report.html import to_html
from verify.report.markdown import to_markdown
from verify.report.schema import Results
from verify.report.terminal import summary
from verify.report.verdict import conclude
from verify.results import Evidence, Verdict

BONUS = "bonus_from_draft (BON) gives exactly the observed law; next draft_leak, 40%: ..."
AFTER_SCHEDULE = f"if chapter 2 passes: a draft decides whether it is verified (SCHED); else: {BONUS}"
GREEDY = "acceptance_too_generous (ACC; explains 1 of 1): ..."


def failing(make_check: Any, make_results: Any) -> Results:
    greedy = [
        make_check(Verdict.FAIL, name=f"test_greedy_{n}", chapter=1, evidence=Evidence.GREEDY, diagnosis=GREEDY)
        for n in range(3)
    ]
    exact = [
        make_check(Verdict.FAIL, name="test_unnamed", diagnosis="the divergence moves"),
        make_check(Verdict.FAIL, name="test_law", diagnosis=BONUS),
        make_check(Verdict.FAIL, name="test_admission", chapter=12, diagnosis=AFTER_SCHEDULE),
    ]
    results: Results = make_results(*greedy, *exact, make_check(Verdict.NOT_APPLICABLE, name="test_absent", chapter=14))
    return results


def test_the_strongest_evidence_has_the_word(make_check: Any, make_results: Any) -> None:
    cause = probable_cause(failing(make_check, make_results))
    assert (
        str(cause) == "bonus_from_draft, named by 2 of 6 failing checks; begin with verify/suite/test_02.py::test_law"
    )


def test_one_failure_and_nameless_ones_need_no_word(make_check: Any, make_results: Any) -> None:
    nameless = [make_check(Verdict.FAIL, name=f"test_{n}", diagnosis="silent downgrade (LOGP): ...") for n in range(2)]
    assert probable_cause(make_results(make_check(Verdict.FAIL, diagnosis=BONUS))) is None
    assert probable_cause(make_results(*nameless)) is None
    assert probable_cause(make_results(make_check())) is None


def test_every_report_says_it(make_check: Any, make_results: Any) -> None:
    results = failing(make_check, make_results)
    page = to_html(results)
    assert "Probable cause: <b>bonus_from_draft</b>, named by 2 of 6 failing checks" in page
    assert '<a href="#verify/suite/test_02.py::test_law">' in page
    assert "Probable cause: bonus_from_draft, named by 2 of 6" in to_markdown(results)


def test_the_terminal_groups_by_property_and_leaves_out_what_does_not_apply(make_check: Any, make_results: Any) -> None:
    same = [make_check(Verdict.FAIL, name="test_x", reason=f"reason {n}") for n in range(3)]
    results = make_results(*same, make_check(Verdict.NOT_APPLICABLE, name="test_absent", chapter=14))
    text = summary(
        results,
        conclude(results.checks, results.not_verified),
        exit_code=1,
        folder=Path("reports"),
        problems=[],
        width=80,
        color=False,
    )
    assert "FAIL verify/suite/test_02.py::test_x and 2 more of property of test_x: reason 0\n" in text
    assert "reason 1" not in text
    assert "14. Streaming" not in text

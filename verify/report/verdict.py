"""The run's one verdict and its exit code, from the verdicts of its checks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from verify.report.schema import CheckResult, NotVerified, RunVerdict
from verify.results import Verdict

EXIT_CODES: dict[RunVerdict, int] = {"pass": 0, "fail": 1, "inconclusive": 10, "incomplete": 11}
USAGE_ERROR = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """The run's verdict, why (one sentence), and the exit code.

    They differ in one case only: a partial run with `--allow-partial` exits by what ran, while its verdict says that
    the decoder was not judged.
    """

    verdict: RunVerdict
    reason: str
    exit_code: int


def conclude(
    checks: Sequence[CheckResult], not_verified: Sequence[NotVerified], *, allow_partial: bool = False
) -> Conclusion:
    """Order the outcomes: fail > incomplete > inconclusive > pass.

    Incomplete: a required check erred, did not run or was not selected, the run itself had a problem, or no check said
    anything about the decoder (all skipped, not applicable or waived).
    """
    ran = _among(checks, [entry for entry in not_verified if entry.kind in ("not_run", "run")])
    not_selected = [entry for entry in not_verified if entry.kind == "not_selected" and entry.required]
    if not not_selected:
        return ran
    partial = f"partial run: {len(not_selected)} required entries of the suite were not selected"
    if ran.verdict == "fail":
        return replace(ran, reason=f"{ran.reason}; {partial}")
    reason = f"{partial}; among the checks that ran: {ran.verdict} ({ran.reason})"
    code = ran.exit_code if allow_partial else EXIT_CODES["incomplete"]
    return Conclusion(verdict="incomplete", reason=reason, exit_code=code)


def _among(checks: Sequence[CheckResult], missing: Sequence[NotVerified]) -> Conclusion:
    def count(*verdicts: Verdict, required: bool = False) -> int:
        return sum(each.verdict in verdicts and (each.details.required or not required) for each in checks)

    verdict: RunVerdict
    lost = [entry for entry in missing if entry.required]
    if failed := count(Verdict.FAIL):
        verdict, reason = "fail", f"{_many(failed, 'check')} failed"
    elif errors := count(Verdict.ERROR, required=True):
        verdict, reason = "incomplete", f"{_many(errors, 'required check')} ended in an error"
    elif lost:
        verdict, reason = "incomplete", f"{lost[0].what}: {lost[0].reason}" + _and_more(len(lost) - 1)
    elif not count(Verdict.PASS, Verdict.INCONCLUSIVE):
        verdict, reason = "incomplete", f"nothing was judged: none of {_many(len(checks), 'check')} passed"
    elif unsure := count(Verdict.INCONCLUSIVE, required=True):
        verdict, reason = "inconclusive", f"{_many(unsure, 'required check')} lacked the power or coverage to decide"
    else:
        waived = count(Verdict.WAIVED)
        exception = f", {_many(waived, 'failure')} waived" if waived else ""
        verdict, reason = "pass", f"{_many(count(Verdict.PASS), 'check')} passed{exception}"
    return Conclusion(verdict=verdict, reason=reason, exit_code=EXIT_CODES[verdict])


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _and_more(number: int) -> str:
    return f" (and {number} more)" if number else ""

"""The search for a failing case: Hypothesis generates cases from what a decoder claims and shrinks the first failure."""

from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase

from verify.cases import Case, generated_cases
from verify.checks.exact_law import judge_exact_law
from verify.judge import ContractViolation, Judge
from verify.protocol import Capabilities
from verify.results import Evidence, Finding, Verdict
from verify.subject import Subject

MAX_GENERATED_PATHS = 2500.0


class _Failed(Exception):
    """Carries a failing finding through Hypothesis."""


def judge_generated(
    judge: Judge, capabilities: Capabilities, subject_for: Callable[[Case], Subject], *, num_cases: int
) -> Finding:
    """Exact law on `num_cases` generated cases; the smallest failing case is the evidence.

    A case that does not fail again is evidence too: its law was exact, so the decoder remembers what it was asked before.
    """
    findings: list[tuple[Case, Finding]] = []
    worst: list[tuple[Case, Finding]] = []

    @hypothesis.seed(judge.seed)
    @hypothesis.settings(
        max_examples=num_cases,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @hypothesis.given(generated_cases(capabilities, max_paths=MAX_GENERATED_PATHS, batch=capabilities.batch))
    def search(case: Case) -> None:
        try:
            finding = judge_exact_law(subject_for(case), case)
        except ContractViolation as violation:
            finding = Finding(
                verdict=Verdict.FAIL, evidence=Evidence.EXACT, reason=str(violation), details=dict(violation.details)
            )
        judge.progress(len(findings), num_cases, "generated cases")
        findings.append((case, finding))
        if finding.verdict is Verdict.FAIL:
            worst.append((case, finding))
            raise _Failed

    try:
        search()
    except _Failed:
        case, finding = worst[-1]  # Hypothesis replays the smallest failing case last
        return _failure(f"smallest failing case of {len(findings)} tried", case, finding)
    except hypothesis.errors.Flaky:
        if not worst:
            raise
        case, finding = worst[-1]
        return _failure(
            "a case failed, and passed when it was asked again (what was asked before matters)", case, finding
        )
    return _summary(findings)


def _failure(how: str, case: Case, finding: Finding) -> Finding:
    return Finding(
        verdict=Verdict.FAIL,
        evidence=Evidence.EXACT,
        reason=f"{how}: {finding.reason}",
        observations=finding.observations,
        unit="paths",
        diagnosis=finding.diagnosis,
        details={**finding.details, "smallest_case": repr(case)},
    )


def _summary(findings: list[tuple[Case, Finding]]) -> Finding:
    judged = [finding for _, finding in findings if finding.verdict is Verdict.PASS]
    paths = sum(finding.observations for finding in judged)
    details: dict[str, Any] = {
        "cases": [
            {"case": repr(case), "verdict": str(finding.verdict), "reason": finding.reason}
            for case, finding in findings
        ]
    }
    if len(judged) < len(findings) / 2:
        first = next(finding for _, finding in findings if finding.verdict is not Verdict.PASS)
        return Finding(
            verdict=first.verdict,
            evidence=Evidence.EXACT,
            reason=f"only {len(judged)} of {len(findings)} generated cases could be judged: {first.reason}",
            details=details,
        )
    worst = max(judged, key=lambda finding: float(finding.details["total_variation"]))
    return Finding(
        verdict=Verdict.PASS,
        evidence=Evidence.EXACT,
        reason=f"{len(judged)} generated cases follow the target's law; largest TV {worst.details['total_variation']:.1e}",
        observations=paths,
        unit="paths",
        smallest_visible=worst.smallest_visible,
        smallest_visible_unit="TV",
        details=details,
    )

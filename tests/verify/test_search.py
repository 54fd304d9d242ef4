"""The search for a failing case, with laws that are made up."""

from types import SimpleNamespace
from typing import Any

import pytest

from verify.checks import search
from verify.checks.search import judge_generated
from verify.protocol import Capabilities
from verify.results import Evidence, Finding, Verdict

JUDGE: Any = SimpleNamespace(seed=1, progress=lambda *_: None)
CLAIMS = Capabilities(greedy=True, sampled=True)


def finding(verdict: Verdict) -> Finding:
    return Finding(verdict=verdict, evidence=Evidence.EXACT, reason="made up", details={"total_variation": 0.0})


def judged(monkeypatch: pytest.MonkeyPatch, *, failing_calls: range) -> Finding:
    """All cases pass but those of some calls, in order of time."""
    calls: list[object] = []

    def judge_exact_law(*arguments: object) -> Finding:
        calls.append(arguments)
        return finding(Verdict.FAIL if len(calls) in failing_calls else Verdict.PASS)

    monkeypatch.setattr(search, "judge_exact_law", judge_exact_law)
    return judge_generated(JUDGE, CLAIMS, lambda case: case, num_cases=10)  # type: ignore[arg-type,return-value]


def test_all_cases_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    assert judged(monkeypatch, failing_calls=range(0)).verdict is Verdict.PASS


def test_the_smallest_case_that_fails_is_the_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judged(monkeypatch, failing_calls=range(3, 10**6))
    assert found.verdict is Verdict.FAIL
    assert found.reason.startswith("smallest failing case of ")
    assert "vocab_size=2" in found.details["smallest_case"]


def test_a_case_that_does_not_fail_again_is_evidence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judged(monkeypatch, failing_calls=range(3, 4))
    assert found.verdict is Verdict.FAIL
    assert found.reason == "a case failed, and passed when it was asked again (what was asked before matters): made up"
    assert found.details["smallest_case"]

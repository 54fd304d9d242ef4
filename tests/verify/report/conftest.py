"""Fabricated results: every verdict, every picture, hostile text."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from verify.judge import Check
from verify.outcome import check_result
from verify.report.schema import CheckResult, DecoderInfo, NotVerified, Results, Waived
from verify.report.verdict import conclude
from verify.results import Evidence, Finding, Verdict

HOSTILE = 'a<script>alert("x")</script>|b\x1b[31m & \x00'

MakeCheck = Callable[..., CheckResult]
MakeResults = Callable[..., Results]


def pictures() -> list[dict[str, Any]]:
    draw = random.Random(0)
    tokens = list(range(0, 4001, 100))
    wealth = {
        "residual not subtracted": [0.003 * t for t in tokens],
        "draft leak 0.1": [0.0012 * t + draw.gauss(0, 0.3) for t in tokens],
        "sharpened": [-0.0004 * t for t in tokens],
        "ruined": [0.0] + [-math.inf] * (len(tokens) - 1),
    }
    for number in range(6):
        wealth[f"generic {number}"] = [-0.0002 * number * t + draw.gauss(0, 0.2) for t in tokens]
    return [
        {"kind": "wealth", "title": "Wealth $x_1$ <b>", "tokens": tokens, "log10_wealth": wealth, "threshold": 8.2},
        {
            "kind": "acceptance",
            "title": "Acceptance",
            "positions": [1, 2, 3],
            "measured": [0.8, 0.7, 0.71],
            "low": [0.78, 0.66, 0.62],
            "high": [0.82, 0.74, 0.79],
            "theory": [0.79, 0.72, 0.68],
            "definition": "conditional",
        },
        {
            "kind": "divergences",
            "title": "Divergences",
            "positions": [3, 17, 44, 60],
            "gaps": [1e-7, 2e-7, 0.4, 3e-7],
            "floor": 1e-6,
        },
        {
            "kind": "law",
            "title": "Law of the first token",
            "labels": ["A", "B", "C"],
            "expected": [0.7, 0.3, 0.0],
            "observed": [0.85, 0.15, 0.0],
        },
        {
            "kind": "coverage",
            "title": "Coverage",
            "counts": {"full acceptance": 310, "rejection at 1": 40, "rejection at 2": 12, "stop inside a block": 0},
        },
    ]


@pytest.fixture
def make_check() -> MakeCheck:
    def make(
        verdict: Verdict = Verdict.PASS,
        *,
        name: str = "test_x",
        chapter: int = 2,
        required: bool = True,
        evidence: Evidence = Evidence.EXACT,
        **finding: Any,
    ) -> CheckResult:
        unit = "tokens" if verdict is Verdict.NOT_APPLICABLE else "paths"
        given: dict[str, Any] = {"reason": f"said {verdict}", "observations": 195, "unit": unit} | finding
        return check_result(
            id=f"verify/suite/test_{chapter:02d}.py::{name}",
            check=Check(chapter=chapter, property=f"property of {name}", evidence=evidence, required=required),
            finding=Finding(verdict=verdict, evidence=evidence, **given),
            alpha=1e-7,
            seed=7,
            duration_s=1.25,
            command=f"pytest 'verify/suite/test_{chapter:02d}.py::{name}' --decoder d --seed 1 --allow-partial",
            about="What it is.\n\nWhy it can fail.",
            traceback="Traceback\n  here" if verdict is Verdict.ERROR else "",
        )

    return make


@pytest.fixture
def make_results() -> MakeResults:
    def make(*checks: CheckResult, not_verified: list[NotVerified] | None = None, **changes: Any) -> Results:
        missing = not_verified or []
        frame: dict[str, Any] = {
            "verdict": conclude(checks, missing).verdict,
            "decoder": DecoderInfo(name="my:make", adapter="my:make", capabilities={"greedy": True, "logprobs": "raw"}),
            "models": [{"name": "table", "vocab_size": 3, "device": "cpu", "dtype": "torch.float64"}],
            "device": "cpu",
            "dtype": "float32",
            "seed": 1,
            "profile": "default",
            "false_alarm": 1e-6,
            "checks": list(checks),
            "not_verified": missing,
            "waived": [],
            "environment": {"started": "2025-01-02T03:04:05Z", "python": "3.11"},
            "commit": "abc",
            "command": "pytest verify/ --decoder my:make --seed 1",
            "duration_s": 61.5,
        }
        return Results.model_validate(frame | changes)

    return make


@pytest.fixture
def everything(make_check: MakeCheck, make_results: MakeResults) -> Results:
    """A failing run with every verdict and every picture."""
    checks = [
        make_check(
            Verdict.FAIL,
            name="test_law[chain-3]",
            reason="expected total variation at most 1e-9, observed 0.043 at sequence (0, 2, 1)",
            diagnosis="residual not subtracted, 10^9.1 to 1 against draft leak 0.1",
            details={"pictures": pictures(), "minimal_case": {"prompt": [0, 1], "position": 3}, "worst": math.inf},
        ),
        make_check(Verdict.FAIL, name="test_hostile", chapter=13, reason=HOSTILE, evidence=Evidence.CONTRACT),
        make_check(Verdict.ERROR, name="test_broken", chapter=6),
        make_check(Verdict.INCONCLUSIVE, name="test_unsure", chapter=3, evidence=Evidence.BETTING, false_alarm=1e-7),
        make_check(Verdict.NOT_APPLICABLE, name="test_absent", chapter=14, observations=0),
        make_check(Verdict.WAIVED, name="test_waived", chapter=5),
        make_check(
            name="test_fine[peaked]",
            chapter=3,
            evidence=Evidence.BETTING,
            smallest_visible=0.0213,
            smallest_visible_unit="total variation",
            details={"pictures": pictures()},
        ),
        *(
            make_check(name=f"test_{chapter}_{number}", chapter=chapter, smallest_visible=1e-9)
            for chapter in range(1, 13)
            for number in range(chapter % 5 + 2)
        ),
    ]
    return make_results(
        *checks,
        not_verified=[
            NotVerified(kind="capability", what="streaming", reason="not claimed by the decoder"),
            NotVerified(kind="capability", what="min_p", reason="not claimed by the decoder"),
            NotVerified(kind="not_applicable", what="verify/suite/test_14.py::test_absent", reason="no streaming"),
            NotVerified(
                kind="profile", what="verify/suite/test_02.py::test_long", reason="runs at --profile exhaustive"
            ),
        ],
        waived=[
            Waived(
                id="verify/suite/test_05.py::test_waived",
                pattern="*test_waived",
                reason="known, issue 12",
                failure="one token too many",
            )
        ],
    )

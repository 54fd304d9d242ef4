"""Whole runs are counted once, go on after an interruption, and a fail is an alarm."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.measurements import whole_runs
from tests.measurements.whole_runs import jobs_of, measure, page, run_suite, summarise


def finished(job: dict[str, Any]) -> dict[str, Any]:
    verdict = {3: "fail", 4: "inconclusive", 5: "none"}.get(job["seed"], "pass")
    bad = [] if verdict == "pass" else [{"id": "a check", "verdict": verdict, "reason": "a reason"}]
    wealths = [float(job["seed"]), -1.0]
    return {"job": job, "exit_code": 0, "seconds": 2.0, "verdict": verdict, "bad": bad, "log10_wealth": wealths}


def test_counts_and_resumption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def run(job: dict[str, Any]) -> dict[str, Any]:
        ran.append(job["seed"])
        return finished(job)

    monkeypatch.setattr(whole_runs, "run_suite", run)
    path = tmp_path / "runs.jsonl"
    jobs = jobs_of(runs=6, profile="smoke", decoders=["one", "two"], first_seed=1)
    measure(path, jobs[:2], parallel=1)
    entries = measure(path, jobs, parallel=2)
    assert sorted(ran) == [1, 2, 3, 4, 5, 6]
    assert [entry["job"] for entry in entries] == jobs
    result = summarise(entries, "x")
    assert result["kinds"]["all"]["counts"] == {"pass": 3, "fail": 1, "inconclusive": 1, "other": 1}
    assert result["kinds"]["one"]["counts"] == {"pass": 1, "fail": 1, "inconclusive": 0, "other": 1}
    assert result["bets_above"] == {"1": 6, "2": 5, "3": 4}
    text = page(result)
    assert "- fail: one, seed 3, `a check`: a reason" in text
    assert "1: 0.1667" in text


def test_a_run_without_results_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = run_suite({"decoder": "no such decoder", "profile": "smoke", "seed": 1})
    assert (entry["verdict"], entry["exit_code"]) == ("none", 4)
    assert "no such decoder" in entry["output"]
    json.dumps(entry)

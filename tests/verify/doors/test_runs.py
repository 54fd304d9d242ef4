"""Whole runs through the two narrow doors, each in a process of its own: exit codes, reports, what is kept."""

from pathlib import Path
from typing import Any

from tests.verify.doors import logs
from tests.verify.running import run_suite

KERNELS = "tests.verify.doors.kernels"
CHECKS = (
    "test_16_kernel.py::test_blocks[close]",
    "test_16_kernel.py::test_edges",
    "test_02_exact_law.py::test_rounds[close]",
    "test_01_greedy.py::test_exact_ties",
)


def run(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, results and what was printed."""
    return run_suite(tmp_path / "reports", *arguments, "--allow-partial", "--profile", "smoke")


def kernel_run(tmp_path: Path, kernel: str, *checks: str) -> tuple[int, dict[str, Any], str]:
    chosen = [f"verify/suite/{each}" for each in checks]
    return run(tmp_path, *chosen, "--verifier", f"{KERNELS}:{kernel}")


def test_a_correct_step_passes(tmp_path: Path) -> None:
    exit_code, results, printed = kernel_run(tmp_path, "reference", *CHECKS)
    assert exit_code == 0, printed
    assert [each["verdict"] for each in results["checks"]] == ["pass"] * len(CHECKS)
    assert any("streaming" in each["what"].lower() for each in results["not_verified"])


def test_a_planted_bug_fails_with_its_name(tmp_path: Path) -> None:
    exit_code, results, printed = kernel_run(tmp_path, "residual_not_subtracted", CHECKS[0], CHECKS[2])
    assert exit_code == 1, printed
    assert all(each["verdict"] == "fail" for each in results["checks"])
    assert all("residual_not_subtracted" in each["details"]["diagnosis"] for each in results["checks"])


def test_a_broken_contract_is_one_clear_failure_a_check(tmp_path: Path) -> None:
    exit_code, results, printed = kernel_run(tmp_path, "raises", *CHECKS)
    assert exit_code == 1, printed
    assert len(results["checks"]) == len(CHECKS)
    for each in results["checks"]:
        assert (each["verdict"], each["evidence"]) == ("fail", "contract")
        assert "RuntimeError: no kernel image is available" in each["reason"]
    assert "Traceback" not in printed


def test_a_log_is_judged_and_a_cut_file_is_no_pass(tmp_path: Path, sample: list[dict[str, Any]]) -> None:
    chosen = ("verify/suite/test_17_log.py", "--target", str(logs.FIXTURES / "target"))
    path = logs.write(tmp_path / "log.jsonl", sample)
    exit_code, results, printed = run(tmp_path, *chosen, "--generations", str(path))
    assert exit_code == 0, printed
    assert results["decoder"]["name"] == "dspark 0.1"
    assert results["decoder"]["capabilities"]["top_k"] is True
    assert [each["name"] for each in results["models"]] == ["given-pair"]
    assert any("chapter 2" in each["what"] for each in results["not_verified"])
    verdicts = {each["property"]: each["verdict"] for each in results["checks"]}
    assert (
        verdicts.pop("logged seeds reproduce") == verdicts.pop("outputs without a seed are fresh") == "not_applicable"
    )
    assert set(verdicts.values()) == {"pass"}
    (recorded,) = (tmp_path / "reports").glob("*/latest/generations.jsonl.gz")

    again = tmp_path / "again"  # what the run recorded is a log in its turn
    cut = again / "generations.jsonl.gz"
    again.mkdir()
    cut.write_bytes(recorded.read_bytes()[:-600])
    exit_code, results, printed = run(again, *chosen, "--generations", str(cut))
    assert exit_code == 11, printed
    verdicts = {each["property"]: each["verdict"] for each in results["checks"]}
    assert (verdicts["lines are readable"], verdicts["sampled law of the log"]) == ("error", "pass")

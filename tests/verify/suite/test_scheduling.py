"""Chapter 12 sees a schedule that looks ahead, passes a causal one, and does not pass what never scheduled."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


def verdicts(tmp_path: Path, decoder: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "verify/suite/test_12_scheduling.py", "--seed", "1", "--allow-partial"]
    command += ["--decoder", f"tests.verify.suite.schedulers:{decoder}", "--report-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300, check=False)
    (path,) = tmp_path.glob("*/latest/results.json")
    return {check["id"].rsplit("::", 1)[1]: check["verdict"] for check in json.loads(path.read_text())["checks"]}


@pytest.mark.parametrize(
    ("decoder", "alone", "in_batches", "lengths"),
    [
        ("causal", "pass", "pass", "pass"),
        (
            "looks_ahead",
            "fail",
            "pass",
            "pass",
        ),  # of a batch the exact case alone could tell, and there it decides alike
        ("mixes_rows", "pass", "fail", "pass"),
        ("never_at_work", "pass", "pass", "inconclusive"),
    ],
)
def test_chapter(tmp_path: Path, decoder: str, alone: str, in_batches: str, lengths: str) -> None:
    found = verdicts(tmp_path, decoder)
    assert found.pop("test_lengths_vary") == lengths
    assert found.pop("test_sampled_law_of_batches") == in_batches
    assert found.pop("test_admission_in_a_batch[uneven, beside another request]") == in_batches
    assert found.pop("test_admission[uneven, dear forward]") == alone
    assert set(found.values()) <= {"pass", alone}  # where another cost of a forward is critical, both decide alike

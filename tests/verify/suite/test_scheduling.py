"""Chapter 12 sees a schedule that looks ahead, passes a causal one, and does not pass what never scheduled."""

from pathlib import Path
from typing import Any

import pytest

from tests.verify.running import run_suite

ROOT = Path(__file__).parents[3]


def verdicts(tmp_path: Path, decoder: str) -> dict[str, Any]:
    chosen = ["verify/suite/test_12_scheduling.py", "--decoder", f"tests.verify.suite.schedulers:{decoder}"]
    _, results, _ = run_suite(tmp_path, *chosen, "--allow-partial", timeout=300)
    return {check["id"].rsplit("::", 1)[1]: check["verdict"] for check in results["checks"]}


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

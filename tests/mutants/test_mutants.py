"""Every planted bug makes the suite fail, with the right property named; the correct decoder never."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.mutants import MUTANTS

ROOT = Path(__file__).parents[2]


def judge(tmp_path: Path, decoder: str, *checks: str) -> dict[str, Any]:
    """Run some checks in a process of their own."""
    nodes = [f"verify/suite/{check}" for check in checks]
    command = [sys.executable, "-m", "pytest", *nodes, "--decoder", decoder, "--seed", "1"]
    command += ["--profile", "default", "--allow-partial", "--report-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    (path,) = tmp_path.glob("*/latest/results.json")
    results: dict[str, Any] = json.loads(path.read_text())
    results["exit_code"] = done.returncode
    return results


def test_families() -> None:
    required = {
        "ACC",
        "QMIS",
        "RES",
        "BON",
        "LOGP",
        "STOP",
        "KV",
        "BATCH",
        "RNG",
        "VOCAB",
        "EDGE",
        "LPROB",
        "SCHED",
        "STAT",
    }
    assert required <= {mutant.family for mutant in MUTANTS.values()}


@pytest.mark.parametrize("id", MUTANTS)
def test_mutant_is_caught(tmp_path: Path, id: str) -> None:  # noqa: A002 (the word of the catalog)
    mutant = MUTANTS[id]
    results = judge(tmp_path, f"tests.mutants:{id}", mutant.check)
    assert results["exit_code"] == 1
    (check,) = results["checks"]
    assert (check["verdict"], check["property"]) == ("fail", mutant.property), check["reason"]


def test_the_correct_decoder_passes_the_same_checks(tmp_path: Path) -> None:
    results = judge(tmp_path, "dspark", *sorted({mutant.check for mutant in MUTANTS.values()}))
    assert {check["reason"] for check in results["checks"] if check["verdict"] != "pass"} == set()
    assert results["exit_code"] == 0

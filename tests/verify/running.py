"""The suite in a process of its own, as a user starts it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def run_suite(report_dir: Path, *arguments: str, timeout: float = 600) -> tuple[int, dict[str, Any], str]:
    """Exit code, results ({} where none were written) and what was printed, with seed 1."""
    command = [sys.executable, "-m", "pytest", *arguments, "--seed", "1", "--report-dir", str(report_dir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    reports = list(report_dir.glob("*/latest/results.json"))
    return done.returncode, json.loads(reports[0].read_text()) if reports else {}, done.stdout + done.stderr

"""The smoke profile concludes on a correct decoder: with fewer prompts no required check may be left undecided."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_reference_decoder_passes_smoke(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "verify/",
        "--decoder",
        "dspark-classic",
        "--profile",
        "smoke",
        "--seed",
        "1",
    ]
    done = subprocess.run([*command, "-q", "--report-dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]

"""One run of some checks against one decoder, in a process of its own."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

# Imported once, before the processes fork off: most of what a short run costs. Pytest warns that it cannot rewrite what is
# imported already; no assertion of these is of interest.
PRELOADED = [
    "hypothesis",
    "scipy.stats",
    "tests.mutants",
    "verify.checks.exact_law",
    "verify.checks.sampled_law",
    "verify.report.writer",
    "verify.suite.support",
]
ROOT = Path(__file__).parents[2]
LOG = "log.txt"
QUIETLY = ("-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")


class Process(Protocol):
    """What the runner needs of a process."""

    @property
    def exitcode(self) -> int | None: ...

    def join(self, timeout: float | None = None) -> None: ...

    def terminate(self) -> None: ...


def start_trial(decoder: str, checks: Sequence[str], folder: Path, *options: str) -> Process:
    """Begin to judge `decoder` by some checks, or by all where none is named; the report and a log go to `folder`.

    The seed is 1 unless `options` name another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    nodes = [f"verify/suite/{check}" for check in checks] or ["verify/"]
    arguments = [*nodes, "--decoder", decoder, "--seed", "1", "--report-dir", str(folder.resolve()), *QUIETLY]
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_run_pytest, args=([*arguments, *options], folder.resolve() / LOG))
    process.start()
    return process


def results_of(folder: Path) -> dict[str, Any] | None:
    """What the newest run in `folder` left behind; None where it left nothing."""
    paths = sorted(folder.glob("*/*/results.json"), key=lambda path: path.parent.name)
    paths = [path for path in paths if path.parent.name != "latest"]
    if not paths:
        return None
    found: dict[str, Any] = json.loads(paths[-1].read_text(encoding="utf-8"))
    return found


def _run_pytest(arguments: Sequence[str], log: Path) -> None:
    """Run pytest here; the process ends with its exit code."""
    import pytest
    import torch

    os.chdir(ROOT)
    torch.set_num_threads(1)
    with log.open("w", encoding="utf-8") as stream, redirect_stdout(stream), redirect_stderr(stream):
        code = pytest.main(list(arguments))
    sys.exit(int(code))

"""What a long measurement has done so far: one JSON line a batch, so that an interrupted one goes on where it was."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from scipy.stats import binomtest

Entry = dict[str, Any]


def resume(path: Path, jobs: Sequence[Entry], work: Callable[[Entry], Entry], *, label: str) -> list[Entry]:
    """Do every job that the file does not hold yet; returns one entry a job, in order.

    A job is a JSON object that says all there is to it, seed included; an entry is the job with the result of `work`.
    """
    done = {_key(line["job"]): line for line in read_lines(path)}
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    cut_off = path.exists() and not path.read_text().endswith("\n")
    with Progress(*columns) as progress, path.open("a") as file:
        file.write("\n" * cut_off)
        task = progress.add_task(label, total=len(jobs), completed=sum(_key(job) in done for job in jobs))
        for job in jobs:
            if _key(job) not in done:
                done[_key(job)] = {"job": job, **work(job)}
                file.write(json.dumps(done[_key(job)]) + "\n")
                file.flush()
                progress.advance(task)
    return [done[_key(job)] for job in jobs]


def read_lines(path: Path) -> list[Entry]:
    """The entries of a file; a last line that was cut off is dropped."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


def interval(count: int, runs: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a rate."""
    found = binomtest(count, runs).proportion_ci(confidence_level=confidence, method="exact")
    return float(found.low), float(found.high)


def shown(count: int, runs: int) -> str:
    """A rate with its 95% interval, for a table."""
    low, high = interval(count, runs)
    return f"{count / runs:.4f} [{low:.4f}, {high:.4f}]"


def _key(job: Entry) -> str:
    return json.dumps(job, sort_keys=True)

"""The judge before and after: `judge_speed.py` in two checkouts by turns, and a table of both.

`python -m tests.benchmarks.compare OLDER_CHECKOUT [--turns 3] [--out reports/bench/judge.md]`, after
`git clone . OLDER_CHECKOUT && git -C OLDER_CHECKOUT checkout 75a7aca`. CPU time of one thread; each turn begins with the other
checkout; the ratio is of the medians, beside it the least and the greatest ratio of one turn.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from verify.report.recorder import write_atomically

ROOT = Path(__file__).parents[2]
BENCHMARK = Path("tests") / "benchmarks" / "judge_speed.py"
RATE = "_per_minute"
Turn = dict[str, float]


def measured(checkout: Path) -> Turn:
    """Rates of one run there, by benchmark and unit."""
    file = checkout / BENCHMARK
    if checkout != ROOT:
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / BENCHMARK, file)
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "benchmark.json"
        options = ("--quiet", "--benchmark-timer=time.process_time", f"--benchmark-json={found}")
        environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", str(BENCHMARK), *options]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{BENCHMARK} ended with {done.returncode} in {checkout}:\n{done.stdout}{done.stderr}")
        benchmarks: list[dict[str, Any]] = json.loads(found.read_text())["benchmarks"]
    return {
        f"{each['name'].removeprefix('test_')}, {unit.removesuffix(RATE)} a minute": float(value)
        for each in benchmarks
        for unit, value in each["extra_info"].items()
        if unit.endswith(RATE)
    }


def table(before: list[Turn], after: list[Turn]) -> list[str]:
    """One line for each benchmark."""
    lines = ["| benchmark | before | after | ratio | of single turns |", "|---|---|---|---|---|"]
    for name in after[0]:
        old, new = ([turn[name] for turn in turns] for turns in (before, after))
        ratios = [late / early for early, late in zip(old, new, strict=True)]
        middle = statistics.median(new) / statistics.median(old)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        lines.append(
            f"| {name} | {statistics.median(old):,.0f} | {statistics.median(new):,.0f} | {middle:.2f} | {spread} |"
        )
    return lines


def commit_of(checkout: Path) -> str:
    """Its short name."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Measure by turns and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("older", type=Path, help="checkout of the commit to compare with")
    parser.add_argument("--turns", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "reports" / "local" / "judge.md", help="default: %(default)s"
    )
    options = parser.parse_args()
    older = options.older.resolve()
    names = [commit_of(older), commit_of(ROOT)]
    before: list[Turn] = []
    after: list[Turn] = []
    for turn in track(range(options.turns), "turns"):
        pair = [(older, before), (ROOT, after)]
        for checkout, turns in pair if turn % 2 == 0 else reversed(pair):
            turns.append(measured(checkout))
    page = [
        "# Speed of the judge\n",
        f"`python -m tests.benchmarks.compare`: {names[0]} before, {names[1]} after, {options.turns} turns each (A B B A ...),",
        "CPU time of one thread. `exact_law` counts paths through the reference decoder, `bets` tokens at a vocabulary of 64,",
        "`wide_rows` tokens from logits to bets at a vocabulary of 151,936.\n",
        *table(before, after),
        "",
    ]
    write_atomically(options.out, "\n".join(page))
    Console().print("\n".join(page), markup=False)


if __name__ == "__main__":
    main()

"""`python -m verify.bench races`, `compare OLD.json NEW.json [--fail-below 0.95]`, `page RACE.json`, `schema`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from verify.bench.comparison import Change, compare, differences
from verify.bench.races import DEFAULT_FOLDER, run_races
from verify.bench.schema import SCHEMA_FILE, SCHEMA_VERSION, BenchResults, schema_text
from verify.bench.terminal import ranged
from verify.bench.writer import write_race
from verify.report.verdict import USAGE_ERROR


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0, 1 where a gate does not hold, 4 where a file is no race, two do not belong together, or a race was refused."""
    parser = argparse.ArgumentParser(
        prog="python -m verify.bench", description="Run the usual races; work on stored ones."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    comparing = commands.add_parser("compare", help="has the decoder become slower?")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    comparing.add_argument("--fail-below", type=float, help="the least change, at the lower end of its interval")
    comparing.add_argument("--absolute", action="store_true", help="gate tokens a second instead of speed-ups")
    page = commands.add_parser("page", help="make bench.html again")
    page.add_argument("race", type=Path)
    racing = commands.add_parser(
        "races", help="run the usual races on the CPU, some seven minutes; other options go to pytest"
    )
    racing.add_argument("--all", action="store_true", help="also the two dear ones, which take nine minutes more")
    racing.add_argument(
        "--out", type=Path, default=DEFAULT_FOLDER, help=f"folder of the reports (default: {DEFAULT_FOLDER})"
    )
    commands.add_parser("schema", help=f"write {SCHEMA_FILE.name}")
    said, others = parser.parse_known_args(arguments)
    if others and said.command != "races":
        parser.error(f"unknown: {' '.join(others)}")
    if said.command == "races":
        return run_races(said.out, others, all_of_them=said.all)
    if said.command == "schema":
        SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
        return 0
    try:
        if said.command == "page":
            write_race(_read(said.race), said.race.parent)
            return 0
        old, new = _read(said.old), _read(said.new)
        changes = compare(old, new)
    except ValueError as error:
        print(error, file=sys.stderr)
        return USAGE_ERROR
    for difference in differences(old, new):
        print(f"not the same machine or version: {difference}; compare speed-ups only", file=sys.stderr)
    return _show(changes, fail_below=said.fail_below, absolute=said.absolute)


def _read(path: Path) -> BenchResults:
    try:
        return BenchResults.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise ValueError(f"{path} is no race of schema {SCHEMA_VERSION}: {error}") from error


def _show(changes: Sequence[Change], *, fail_below: float | None, absolute: bool) -> int:
    table = Table("at once", "speed-up, new over old", "tokens/s, new over old")
    for change in changes:
        table.add_row(str(change.concurrency), ranged(change.relative, 3), ranged(change.absolute, 3))
    Console().print(table)
    gated = [(each.concurrency, each.absolute if absolute else each.relative) for each in changes]
    slower = [(where, ratio) for where, ratio in gated if fail_below is not None and ratio.low < fail_below]
    for where, ratio in slower:
        print(f"at concurrency {where}: {ranged(ratio, 3)}; the lower end must reach {fail_below:g}", file=sys.stderr)
    return 1 if slower else 0


if __name__ == "__main__":
    raise SystemExit(main())

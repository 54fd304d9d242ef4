"""The usual races on the CPU, one after the other, and one page about all of them."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from verify.bench.schema import BenchResults
from verify.bench.terminal import ranged
from verify.bench.writer import HTML, JSON
from verify.options import relative
from verify.report.recorder import write_atomically

FOLDER = Path(__file__).parent
DEFAULT_FOLDER = Path("reports") / "local" / "bench"
PAGE = "README.md"
EXPENSIVE = ("--cost", "100M")
OVER_PLAIN = (*EXPENSIVE, "--concurrency", "1", "--max-new-tokens", "96")
RACES: dict[str, tuple[str, ...]] = {
    "dspark-classic-over-transformers": (
        "--decoder",
        "dspark-classic",
        "--baseline",
        "transformers",
        "--concurrency",
        "1,4,16",
    ),
    "dspark-over-plain": ("--decoder", "dspark", "--num-draft-tokens", "7", "--concurrency", "1,4,16,64"),
    "dspark-classic-over-transformers-100M": (
        "--decoder",
        "dspark-classic",
        "--baseline",
        "transformers",
        *EXPENSIVE,
        "--concurrency",
        "1,4",
        "--max-new-tokens",
        "48",
    ),
    "dspark-over-plain-100M": ("--decoder", "dspark", "--num-draft-tokens", "7", *OVER_PLAIN),
    "dspark-eagle3-over-plain-100M": ("--decoder", "dspark-eagle3", *OVER_PLAIN),  # accepts most
}
MINUTES_EACH = "0.7"
# With loading, warm-up and the fewest turns all five take 18 minutes on 2 cores, and those left without these about 9.
DEAR = ("dspark-classic-over-transformers-100M", "dspark-over-plain-100M")
HEADER = """# Speed

Made by `python -m verify.bench races --all`; `make bench` leaves out the dear ones. Every speed-up is a ratio of paired turns
in one run (A B A B ...), on the same prompts, with the same number of emitted tokens; brackets are 95% intervals. Absolute
seconds belong to this machine at that moment and are in the pages.
"""


def run_races(folder: Path, arguments: Sequence[str], *, all_of_them: bool = False) -> int:
    """Run them with `arguments` added, the dear ones if told; the worst exit code, after the page about those that took place."""
    worst = 0
    for name, own in RACES.items():
        if name in DEAR and not all_of_them:
            continue
        command = [
            sys.executable,
            "-m",
            "pytest",
            relative(FOLDER, Path.cwd()),
            "--quiet",
            "--minutes",
            MINUTES_EACH,
            *own,
            *arguments,
        ]
        done = subprocess.run([*command, "--out", str(folder / name)], check=False)
        worst = max(worst, done.returncode)
    found = stored_races(folder)
    if not found:
        return worst
    write_atomically(folder / PAGE, summary(found))
    table = Table(*COLUMNS)
    for row in rows(found):
        table.add_row(*row)
    Console().print(table)
    print(f"page: {folder / PAGE}")
    return worst


def stored_races(folder: Path) -> dict[str, BenchResults]:
    """Those of `RACES` that `folder` holds, in that order."""
    files = {name: folder / name / JSON for name in RACES}
    return {
        name: BenchResults.model_validate_json(file.read_text(encoding="utf-8"))
        for name, file in files.items()
        if file.is_file()
    }


COLUMNS = ("models", "decoder", "over", "at once", "speed-up", "tokens/s", "tokens a round", "verdict")


def rows(races: dict[str, BenchResults]) -> list[list[str]]:
    """One for each race and concurrency."""
    found = []
    for race in races.values():
        accepted = race.acceptance.get(race.decoder)
        length = accepted.mean_acceptance_length if accepted else None
        for speed in race.speed:
            found.append(
                [
                    race.models.name,
                    race.decoder,
                    speed.baseline,
                    str(speed.concurrency),
                    ranged(speed.speed_up[speed.baseline]),
                    f"{speed.tokens_per_s[race.decoder].estimate:.0f}",
                    ranged(length) if length else "",
                    race.standings[0].verdict,
                ]
            )
    return found


def summary(races: dict[str, BenchResults]) -> str:
    """The page about all races."""
    first = next(iter(races.values()))
    environment = first.environment
    lines = [
        HEADER,
        f"{environment.get('processor')}, {environment.get('cpus')} processors, {environment.get('threads')} threads, load "
        f"{environment.get('load before')} at the start; torch {environment.get('torch')}, transformers "
        f"{environment.get('transformers')}.\n",
        *dict.fromkeys(f"{race.models.name}: {race.models.statement}\n" for race in races.values()),
        *(" | ".join(["", *row, ""]).strip() for row in (COLUMNS, ["---"] * len(COLUMNS), *rows(races))),
        "",
        *(
            f"- [{name}]({name}/{HTML}), [numbers]({name}/{JSON}): {race.environment.get('started')}, commit `{race.commit}`"
            for name, race in races.items()
        ),
        "",
    ]
    return "\n".join(lines)

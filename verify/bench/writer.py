"""Turning a race into files."""

from pathlib import Path

from verify.bench.schema import BenchResults
from verify.report.recorder import write_atomically

JSON = "bench.json"
HTML = "bench.html"


def write_race(results: BenchResults, folder: Path) -> None:
    """Write `bench.json`, then the page made from it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / JSON, results.to_json())
    from verify.bench.page import to_page  # here: it draws, which the numbers need not wait for

    write_atomically(folder / HTML, to_page(results))

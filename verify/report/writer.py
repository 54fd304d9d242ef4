"""Turning results into files for people and for CI."""

import warnings
from collections.abc import Callable
from pathlib import Path

from verify.report.html import to_html
from verify.report.junit import to_junit
from verify.report.markdown import to_markdown
from verify.report.recorder import write_atomically
from verify.report.schema import Results

WRITERS: dict[str, Callable[[Results], str]] = {
    "junit.xml": to_junit,
    "summary.md": to_markdown,
    "report.html": to_html,
}


def write_reports(results: Results, folder: Path) -> list[str]:
    """Write every report into `folder`; return one sentence for each that could not be written.

    A report that breaks costs neither the others nor `results.json`, from which it can be made again.
    """
    problems = []
    for name, write in WRITERS.items():
        try:
            with warnings.catch_warnings():  # a warning while drawing must not cost the report
                warnings.simplefilter("ignore")
                write_atomically(folder / name, write(results))
        except Exception as error:
            problems.append(
                f"{name} could not be written: {type(error).__name__}: {error}; "
                f"`python -m verify.report {folder / 'results.json'}` makes it again"
            )
    return problems

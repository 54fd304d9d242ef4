"""Pictures of a run as files of their own, for an issue, a pull request or a page."""

import re
from pathlib import Path

from verify.report.pictures import to_svg
from verify.report.recorder import write_atomically
from verify.report.schema import Results
from verify.results import Verdict

INK = "#848d97"  # reads on white and on black


def write_pictures(results: Results, folder: Path) -> list[Path]:
    """Write the pictures of the checks that failed as `CHAPTER-CHECK-N.svg`, of all checks where none did; return the files."""
    failed = [check for check in results.checks if check.verdict is Verdict.FAIL]
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for check in failed or results.checks:
        stem = re.sub(r"\W+", "-", check.id.rpartition("::")[2]).strip("-")
        for number, picture in enumerate(check.details.pictures):
            files.append(folder / f"{check.chapter:02}-{stem}-{number}.svg")
            write_atomically(files[-1], standing_alone(to_svg(picture, name=check.id)))
    return files


def standing_alone(svg: str) -> str:
    """An inline drawing as a file: with its namespace, and an ink in place of the page's text colour."""
    return svg.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" color="{INK}" ', 1) + "\n"

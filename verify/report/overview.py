"""The table of properties: what was checked, on what evidence, how small an error would have been seen, in how many seconds."""

from collections.abc import Iterable

from verify.report.schema import CheckResult, Results
from verify.report.words import chapter_title

MARKS = ("<!-- table -->", "<!-- /table -->")


def property_table(results: Results) -> str:
    """Markdown, one row per property, in order of appearance."""
    groups: dict[tuple[int, str], list[CheckResult]] = {}
    for check in results.checks:
        groups.setdefault((check.chapter, check.property), []).append(check)
    lines = ["| property | evidence | checks | smallest visible error | seconds |", "|---|---|---|---|---|"]
    shown = 0
    for (chapter, prop), checks in groups.items():
        if chapter != shown:
            shown = chapter
            lines.append(f"| **{chapter}. {chapter_title(chapter)}** | | | | |")
        seconds = sum(check.details.duration_s for check in checks)
        kinds = ", ".join(dict.fromkeys(str(check.evidence) for check in checks))
        lines.append(f"| {prop} | {kinds} | {len(checks)} | {_visible(checks)} | {seconds:.1f} |")
    return "\n".join(lines)


def insert(text: str, table: str) -> str:
    """Replace what stands between the marks in a Markdown text."""
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    return f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}"


def _visible(checks: Iterable[CheckResult]) -> str:
    """The range of the stated errors, by unit."""
    by_unit: dict[str, list[float]] = {}
    for check in checks:
        if check.details.smallest_visible is not None:
            by_unit.setdefault(check.details.smallest_visible_unit, []).append(check.details.smallest_visible)
    parts = []
    for unit, values in by_unit.items():
        low, high = min(values), max(values)
        numbers = f"{low:.2g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g} to {high:.2g}"
        parts.append(f"{numbers} {unit}")
    return "; ".join(parts) or "n/a"

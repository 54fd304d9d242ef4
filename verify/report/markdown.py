"""`summary.md`: the report that fits a pull request."""

from collections import Counter
from collections.abc import Iterator

from verify.report.cause import probable_cause
from verify.report.schema import CheckResult, Results
from verify.report.verdict import conclude
from verify.report.words import chapter_title, headline, number, printable, verdict_word
from verify.results import Verdict


def to_markdown(results: Results) -> str:
    """The verdict, one row per check, failures in full, and what was not verified."""
    return "\n".join(_lines(results)) + "\n"


def cell(text: object) -> str:
    """Text that stays inside its table cell."""
    escaped = printable(str(text)).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return " ".join(escaped.split())


def _lines(results: Results) -> Iterator[str]:
    yield f"# {results.verdict.upper()}: {cell(results.decoder.name)}"
    yield ""
    yield f"{headline(results)}"
    yield ""
    yield f"Why: {cell(conclude(results.checks, results.not_verified).reason)}."
    if cause := probable_cause(results):
        yield from ("", f"Probable cause: {cell(cause)}.")
    yield ""
    yield (
        f"Device {results.device}, dtype {results.dtype}, profile {results.profile}, seed {results.seed}, "
        f"false-alarm budget {results.false_alarm:g}, {results.duration_s:.0f} s, commit {cell(results.commit)}."
    )
    yield from ("", f"Run again: `{results.command}`")
    failed = [each for each in results.checks if each.verdict is Verdict.FAIL]
    if failed:
        yield from ("", "## Failures")
        for result in failed:
            yield from _failure(result)
    yield from (
        "",
        "## Checks",
        "",
        "| chapter | property | verdict | evidence | observations | smallest visible error |",
    )
    yield "|---|---|---|---|---|---|"
    for result in results.checks:
        details = result.details
        yield (
            f"| {result.chapter}. {cell(chapter_title(result.chapter))} | {cell(result.property)} "
            f"| {verdict_word(result.verdict)} | {result.evidence} | {details.observations} {cell(details.unit)} "
            f"| {cell(number(details.smallest_visible, details.smallest_visible_unit))} |"
        )
    undecided = [each for each in results.checks if each.verdict in (Verdict.INCONCLUSIVE, Verdict.ERROR)]
    if undecided:
        yield from ("", "## Undecided", "")
        yield from (f"- {verdict_word(each.verdict)}: {cell(each.property)}: {cell(each.reason)}" for each in undecided)
    if results.waived:
        yield from ("", "## Waived", "")
        yield from (f"- `{each.id}`: {cell(each.reason)} (fails with: {cell(each.failure)})" for each in results.waived)
    if results.not_verified:
        yield from ("", "## Not verified", "")
        for (kind, reason), names in _grouped(results).items():
            yield f"- {kind.replace('_', ' ')}: {', '.join(f'`{name}`' for name in names)}: {cell(reason)}"
    counts = Counter(verdict_word(each.verdict) for each in results.checks)
    yield ""
    yield f"Counts: {', '.join(f'{count} {word}' for word, count in counts.most_common()) or 'no checks'}."


def _failure(result: CheckResult) -> Iterator[str]:
    details = result.details
    yield from ("", f"### {cell(result.property)}", "", cell(result.reason), "")
    yield f"- evidence: {result.evidence}, {details.observations} {cell(details.unit)}"
    yield f"- false alarm: {details.false_alarm:g}"
    if details.diagnosis:
        yield f"- diagnosis: {cell(details.diagnosis)}"
    yield f"- seed: {details.seed}"
    yield from ("", "```", printable(details.command), "```")


def _grouped(results: Results) -> dict[tuple[str, str], list[str]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for entry in results.not_verified:
        groups.setdefault((entry.kind, entry.reason), []).append(entry.what)
    return groups

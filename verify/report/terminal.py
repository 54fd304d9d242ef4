"""What a run says in the terminal: header, one failing check, summary."""

import json
from collections import Counter
from collections.abc import Iterator
from io import StringIO
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from verify.budget import Budget
from verify.options import OWN_SUITE, Options
from verify.report.cause import probable_cause
from verify.report.schema import CheckResult, Results
from verify.report.verdict import Conclusion
from verify.report.words import EXIT_MEANINGS, chapter_title, headline, number, verdict_word
from verify.results import Verdict

STYLES = {
    Verdict.PASS: "green",
    Verdict.FAIL: "bold red",
    Verdict.ERROR: "red",
    Verdict.INCONCLUSIVE: "yellow",
    Verdict.WAIVED: "magenta",
    Verdict.NOT_APPLICABLE: "dim",
}
RUN_STYLES = {"pass": "bold green", "fail": "bold red", "inconclusive": "bold yellow", "incomplete": "bold yellow"}


def header(
    options: Options,
    *,
    name: str,
    adapter: str,
    claims: str,
    budget: Budget,
    num_checks: int,
    environment: dict[str, str],
    folder: Path | None,
) -> list[str]:
    """Everything that the verdict depends on, before the first check runs."""
    models = f"target {options.target}" if options.target else "the suite's own"
    if options.draft:
        models += f", draft {options.draft}"
    elif options.derives_draft:
        models += ", draft the same with noise in its weights (no --draft)"
    spent = f"{options.false_alarm:g}, "
    if budget.num_statistical:
        spent += (
            f"{budget.share:.3g} for each of {budget.num_statistical} statistical checks; the others cannot raise one"
        )
    else:
        spent += "unspent: no statistical check is selected"
    lines = [
        f"verify: {num_checks} check{'s' if num_checks != 1 else ''} of {name} ({adapter})",
        f"  claims        {claims}",
        f"  models        {models}; device {options.device}, dtype {options.dtype}",
        f"  profile       {options.profile}, seed {options.seed}",
        f"  false alarm   {spent}",
        f"  environment   {', '.join(f'{name} {value}' for name, value in environment.items())}",
    ]
    if options.suite != OWN_SUITE:
        lines.append(f"  suite         {options.suite} (not the suite of the package verify)")
    if options.xfails:
        lines.append(f"  xfails        {options.xfails}")
    lines.append(f"  report        {folder or 'none: only collecting'}")
    return lines


def failure(result: CheckResult) -> str:
    """What a person needs to know of one failing or inconclusive check."""
    details = result.details
    rows = [
        ("property", f"{result.property} (chapter {result.chapter}: {chapter_title(result.chapter)})"),
        ("check", result.id),
        ("diagnosis", details.diagnosis),
        ("minimal case", json.dumps(details.data["minimal_case"]) if "minimal_case" in details.data else ""),
        ("evidence", f"{result.evidence}, {details.observations} {details.unit}"),
        ("false alarm", f"{details.false_alarm:g} of this check's share {details.alpha:g}" if details.alpha else ""),
        ("reproduce", details.command),
    ]
    lines = [f"{name:<13} {text}" for name, text in rows if text]
    return "\n".join(
        [f"{result.verdict.upper()}: {result.reason}", *lines, *([details.traceback] if details.traceback else [])]
    )


def summary(
    results: Results,
    conclusion: Conclusion,
    *,
    exit_code: int,
    folder: Path,
    problems: list[str],
    width: int,
    color: bool,
) -> str:
    """Table per chapter, failures, verdict, report and exit code, as text for a terminal `width` columns wide."""
    buffer = StringIO()
    console = Console(
        file=buffer, width=width, force_terminal=color, no_color=not color, highlight=False, legacy_windows=False
    )
    if results.checks:
        console.print(_table(results))
    for line in _body(results, problems):
        console.print(line, soft_wrap=True)
    style = RUN_STYLES[results.verdict]
    console.print(
        f"[{style}]{results.verdict.upper()}[/] {escape(results.decoder.name)}: {escape(conclusion.reason)}",
        soft_wrap=True,
    )
    console.print(escape(headline(results)), soft_wrap=True)
    if cause := probable_cause(results):
        console.print(f"cause      {escape(str(cause))}", soft_wrap=True)
    console.print(f"report     {escape(str(folder / 'report.html'))}", soft_wrap=True)
    meaning = EXIT_MEANINGS.get(exit_code, "see above")
    if exit_code == 0 and results.verdict != "pass":
        meaning = "the selected checks passed; a partial run (--allow-partial) is no verdict on the decoder"
    elif exit_code == 1 and results.verdict != "fail":
        meaning = "a test that is not a check of this suite failed"
    elif results.verdict == "incomplete" and any(
        each.kind == "not_selected" and each.required for each in results.not_verified
    ):
        meaning += "; a partial run exits by what ran with --allow-partial"
    console.print(f"exit code  {exit_code}: {meaning}", soft_wrap=True)
    return buffer.getvalue()


def _table(results: Results) -> Table:
    """A row per property; what does not apply is counted below, and listed in the report, but for laws that were not judged."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("property", no_wrap=True)
    for name in ("verdicts", "evidence", "smallest visible error"):
        table.add_column(name, overflow="fold")
    table.add_column("seconds", justify="right")
    judged = [
        each for each in results.checks if each.verdict is not Verdict.NOT_APPLICABLE or each.details.unit == "paths"
    ]
    for number_, of_chapter in groupby(judged, key=lambda each: each.chapter):
        table.add_row(f"[bold]{number_}. {escape(chapter_title(number_))}[/]")
        by_property: dict[str, list[CheckResult]] = {}
        for result in of_chapter:
            by_property.setdefault(result.property, []).append(result)
        for name, checks in by_property.items():
            counts = Counter(each.verdict for each in checks)
            verdicts = ", ".join(
                f"[{STYLES[verdict]}]{counts[verdict]} {verdict_word(verdict)}[/]"
                for verdict in Verdict
                if counts[verdict]
            )
            evidence = ", ".join(dict.fromkeys(each.evidence.value for each in checks))
            seconds = sum(each.details.duration_s for each in checks)
            table.add_row(f"  {escape(name)}", verdicts, evidence, escape(_visible(checks)), f"{seconds:.1f}")
    return table


def _visible(checks: list[CheckResult]) -> str:
    """The coarsest of the checks that share a property and a unit: what all of them would have seen."""
    coarsest: dict[str, float] = {}
    for each in checks:
        value, unit = each.details.smallest_visible, each.details.smallest_visible_unit
        if value is not None:
            coarsest[unit] = max(value, coarsest.get(unit, value))
    return ", ".join(number(value, unit) for unit, value in coarsest.items()) or "—"


def _body(results: Results, problems: list[str]) -> Iterator[str]:
    yield ""
    for verdict in (Verdict.FAIL, Verdict.ERROR, Verdict.INCONCLUSIVE):
        by_property: dict[tuple[int, str], list[CheckResult]] = {}
        for each in results.checks:
            if each.verdict is verdict:
                by_property.setdefault((each.chapter, each.property), []).append(each)
        for first, *more in by_property.values():
            others = f" and {len(more)} more of {first.property}" if more else ""
            yield f"[{STYLES[verdict]}]{verdict.upper()}[/] {escape(first.id)}{escape(others)}: {escape(first.reason)}"
    for waiver in results.waived:
        yield f"[magenta]WAIVED[/] {escape(waiver.id)}: {escape(waiver.reason)}"
    claimed = [name for name, value in results.decoder.capabilities.items() if value]
    if claimed:
        yield f"claimed       {escape(', '.join(claimed))}"
    counts = Counter(entry.kind.replace("_", " ") for entry in results.not_verified)
    if counts:
        yield f"not verified  {', '.join(f'{count} {kind}' for kind, count in counts.items())} (listed in the report)"
    for entry in results.not_verified:
        if entry.kind == "run":
            yield f"[yellow]PROBLEM[/] {escape(entry.what)}: {escape(entry.reason)}"
    for problem in problems:
        yield f"[yellow]PROBLEM[/] {escape(problem)}"
    yield ""

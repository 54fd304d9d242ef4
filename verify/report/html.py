"""`report.html`: one self-contained page for people."""

import json
from dataclasses import dataclass
from itertools import groupby

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from verify.report import words
from verify.report.cause import probable_cause
from verify.report.pictures import caption, to_svg
from verify.report.recorder import WORST_FIRST
from verify.report.schema import CheckResult, NotVerified, Results
from verify.report.verdict import conclude
from verify.results import Evidence, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Chapter:
    """One chapter's checks, worst first."""

    number: int
    title: str
    checks: tuple[CheckResult, ...]

    @property
    def quiet_with_pictures(self) -> tuple[CheckResult, ...]:
        """Checks that are not shown as cards and have something to look at."""
        return tuple(each for each in self.checks if each.verdict not in CARDS and each.details.pictures)


CARDS = (Verdict.FAIL, Verdict.ERROR, Verdict.INCONCLUSIVE)


def to_html(results: Results) -> str:
    """The whole page; it loads nothing and reads well in light and dark, on a phone and on paper."""
    environment = Environment(
        loader=PackageLoader("verify.report", "templates"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        finalize=lambda value: words.printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figures"] = _figures
    environment.filters["pretty"] = _pretty
    environment.filters["kind"] = lambda verdict: verdict.value.replace("_", "-")
    ordered = sorted(results.checks, key=lambda each: (each.chapter, WORST_FIRST.index(each.verdict)))
    chapters = [
        Chapter(number=number, title=words.chapter_title(number), checks=tuple(checks))
        for number, checks in groupby(ordered, key=lambda each: each.chapter)
    ]
    return environment.get_template("report.html.j2").render(
        r=results,
        words=words,
        chapters=chapters,
        reason=conclude(results.checks, results.not_verified).reason,
        cause=probable_cause(results),
        cards={verdict: [each for each in ordered if each.verdict is verdict] for verdict in CARDS},
        card_titles={
            Verdict.FAIL: "Failures",
            Verdict.ERROR: "Checks that broke",
            Verdict.INCONCLUSIVE: "Inconclusive",
        },
        not_verified=_grouped(results.not_verified),
        Verdict=Verdict,
        Evidence=Evidence,
    )


def _figures(result: CheckResult) -> Markup:
    """The check's pictures with captions; one that cannot be drawn says so instead of costing the report."""
    shown = Markup("")
    for number, picture in enumerate(result.details.pictures):
        try:
            drawing, text = (
                Markup(to_svg(picture, name=f"{result.id} {number}")),
                caption(picture),
            )  # our own drawing; its labels are escaped
        except Exception as error:
            drawing, text = (
                Markup(""),
                f"This {picture.kind} picture could not be drawn: {type(error).__name__}: {error}",
            )
        shown += Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(drawing, text)
    return shown


def _pretty(value: object) -> str:
    """A line per key; nested values stay on their line."""
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_pretty(item)}" for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _grouped(entries: list[NotVerified]) -> list[tuple[str, str, list[str]]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        groups.setdefault((entry.kind.replace("_", " "), entry.reason), []).append(entry.what)
    return [(kind, reason, names) for (kind, reason), names in groups.items()]

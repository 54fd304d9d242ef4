"""`bench.html`: one self-contained page, in the style of the suite's report."""

from collections.abc import Iterator

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from verify.bench.schema import BenchResults, Estimate
from verify.bench.terminal import limit_sentence, ranged, warnings
from verify.report import words
from verify.report.bars import Bar, Group, bar_chart
from verify.report.pictures import BLUE, GREEN, GREY, ORANGE, PURPLE, caption, to_svg
from verify.report.schema import Acceptance

COLORS = (BLUE, ORANGE, GREY)
PART_COLORS = {"prefill": GREY, "verify": BLUE, "draft": ORANGE, "sampling": GREEN, "bookkeeping": PURPLE}


def to_page(results: BenchResults) -> str:
    """The whole page; it loads nothing, and every number of a picture is in a table beside it."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("verify.bench", "templates"), PackageLoader("verify.report", "templates")]),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        finalize=lambda value: words.printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["ranged"] = ranged
    environment.filters["ms"] = _ms
    return environment.get_template("bench.html.j2").render(
        r=results,
        alone=results.speed[0] if results.speed else None,
        verdict=results.standings[0].verdict if results.standings else "not judged",
        warnings=[each.plain for each in warnings(results)],
        limit=limit_sentence(results),
        speed_picture=_speed(results),
        shares_picture=_shares(results),
        acceptance_pictures=list(_acceptance(results)),
    )


def _speed(results: BenchResults) -> Markup:
    names = list(results.speed[0].tokens_per_s) if results.speed else []
    groups = [
        Group(
            f"{speed.concurrency} at once",
            tuple(
                Bar(
                    speed.tokens_per_s[name].estimate,
                    COLORS[index % len(COLORS)],
                    f"{speed.tokens_per_s[name].estimate:.0f}",
                )
                for index, name in enumerate(names)
            ),
        )
        for speed in results.speed
    ]
    legend = [(name, COLORS[index % len(COLORS)]) for index, name in enumerate(names)]
    return Markup(bar_chart("Tokens a second", groups, legend=legend))  # our own drawing; its labels are escaped


def _shares(results: BenchResults) -> Markup:
    groups = [
        Group(name, tuple(Bar(share, PART_COLORS[part], f"{share:.0%}") for part, share in each.shares.items()))
        for name, each in results.shares.items()
    ]
    return Markup(bar_chart("Share of time", groups, legend=list(PART_COLORS.items())))


def _acceptance(results: BenchResults) -> Iterator[tuple[Markup, str]]:
    for number, (name, each) in enumerate(results.acceptance.items()):
        if each.conditional:
            picture = Acceptance(
                kind="acceptance",
                title=name,
                positions=list(range(1, len(each.conditional) + 1)),
                measured=[share.estimate for share in each.conditional],
                low=[share.low for share in each.conditional],
                high=[share.high for share in each.conditional],
                definition="conditional",
            )
            yield Markup(to_svg(picture, name=f"acceptance {number}")), caption(picture)


def _ms(value: Estimate | float | None) -> str:
    if value is None:
        return "—"
    if isinstance(value, float):
        return f"{1e3 * value:.2f}"
    return ranged(Estimate(low=1e3 * value.low, estimate=1e3 * value.estimate, high=1e3 * value.high))

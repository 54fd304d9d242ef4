"""Pictures of the evidence as inline SVG that takes the page's text colour, each with its numbers in one sentence."""

import hashlib
import math
import re
from collections.abc import Callable
from io import StringIO
from typing import Any, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from verify.report.bars import Bar, Group, bar_chart
from verify.report.schema import Acceptance, Coverage, Divergences, Law, Picture, Wealth

INK = "#010203"  # stands for the page's text colour, whatever that is
BLUE, ORANGE, GREEN, PURPLE, GREY = "#3b82c4", "#d9772b", "#2a9d72", "#8b6fc0", "#8a929a"
SERIES = (BLUE, ORANGE, GREEN, PURPLE)
FLOOR = -30.0  # log10 wealth below this is drawn here: such a bettor has lost everything
MOST_BARS = 40


def to_svg(picture: Picture, *, name: str) -> str:
    """Draw one picture; the SVG needs no other file, has a transparent background and a text alternative.

    `name` tells this picture from the others of its page: every id in the drawing starts with a digest of it.
    """
    if isinstance(picture, Law):
        return _law(picture)
    if isinstance(picture, Coverage):
        return _coverage(picture)
    draw = cast("Callable[[Axes, Any], None]", DRAW[picture.kind])
    prefix = f"p{hashlib.sha256(name.encode()).hexdigest()[:12]}-"
    style: Any = {
        "axes.edgecolor": INK,
        "axes.facecolor": "none",
        "axes.labelcolor": INK,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 10,
        "figure.facecolor": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "verify",  # the same picture gives the same text
        "text.color": INK,
        "text.parse_math": False,  # a dollar sign in a label is a dollar sign
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(6.2, 2.9), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes, picture)
        buffer = StringIO()
        canvas.print_svg(  # type: ignore[no-untyped-call]
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return _embeddable(buffer.getvalue(), title=picture.title, prefix=prefix)


def caption(picture: Picture) -> str:
    """The picture's main numbers in words, so that none lives only in a drawing."""
    match picture:
        case Wealth():
            best = max(picture.log10_wealth, key=lambda name: max(picture.log10_wealth[name], default=-math.inf))
            top = max(picture.log10_wealth[best], default=math.nan)
            tokens = picture.tokens[-1] if picture.tokens else 0
            return f"Best bettor: {best}, 10^{top:.3g} against a limit of 10^{picture.threshold:.3g}, {tokens} tokens."
        case Acceptance():
            shown = "; ".join(
                f"{position}: {value:.4f} [{low:.4f}, {high:.4f}]"
                + ("" if picture.theory is None else f", theory {picture.theory[index]:.4f}")
                for index, (position, value, low, high) in enumerate(
                    zip(picture.positions, picture.measured, picture.low, picture.high, strict=True)
                )
            )
            return f"Acceptance by position ({picture.definition}): {shown}."
        case Divergences():
            over = sum(gap > picture.floor for gap in picture.gaps)
            largest = max(picture.gaps, default=0.0)
            return (
                f"{len(picture.gaps)} divergences, {over} above the noise floor {picture.floor:.3g}; "
                f"largest gap {largest:.3g} nats."
            )
        case Law():
            gaps = [abs(a - b) for a, b in zip(picture.expected, picture.observed, strict=True)]
            worst = max(range(len(gaps)), key=gaps.__getitem__)
            expected, observed = picture.expected[worst], picture.observed[worst]
            return (
                f"Total variation {sum(gaps) / 2:.3g} over {len(gaps)} outcomes; largest gap at "
                f"{picture.labels[worst]}: expected {expected:.6g}, observed {observed:.6g}."
            )
        case Coverage():
            never = [name for name, count in picture.counts.items() if count == 0]
            return f"Never reached: {', '.join(never)}." if never else f"All {len(picture.counts)} paths reached."


def _wealth(axes: Axes, picture: Wealth) -> None:
    ranked = sorted(picture.log10_wealth, key=lambda name: -max(picture.log10_wealth[name], default=-math.inf))
    for rank, name in reversed(list(enumerate(ranked))):
        values = [max(FLOOR, value) for value in picture.log10_wealth[name]]
        top = rank < len(SERIES)
        axes.plot(
            picture.tokens,
            values,
            color=SERIES[rank] if top else GREY,
            linewidth=1.6 if top else 0.7,
            alpha=1.0 if top else 0.5,
            label=name if top else None,
        )
    axes.axhline(picture.threshold, color=INK, linewidth=1, linestyle="--", label="limit 1/alpha")
    axes.set(xlabel="tokens", ylabel="log10 wealth", title=picture.title)
    axes.set_ylim(bottom=max(-max(3.0, picture.threshold / 2), axes.get_ylim()[0]))  # the ruined leave the picture
    _legend(axes, reverse=True)


def _acceptance(axes: Axes, picture: Acceptance) -> None:
    down = [max(0.0, value - low) for value, low in zip(picture.measured, picture.low, strict=True)]
    up = [max(0.0, high - value) for value, high in zip(picture.measured, picture.high, strict=True)]
    axes.errorbar(
        picture.positions, picture.measured, yerr=[down, up], fmt="o", color=BLUE, capsize=4, label="measured", zorder=3
    )
    if picture.theory is not None:
        axes.plot(
            picture.positions, picture.theory, "_", color=ORANGE, markersize=22, markeredgewidth=2, label="theory"
        )
    axes.set(xlabel="position in the block", ylabel=picture.definition, title=picture.title, ylim=(0, 1.05))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)


def _divergences(axes: Axes, picture: Divergences) -> None:
    over = [gap > picture.floor for gap in picture.gaps]
    positive = [value for value in (*picture.gaps, picture.floor) if value > 0]
    wide = bool(positive) and max(positive) > 100 * min(positive)
    least = min(positive) / 10 if wide else 0.0  # where a logarithmic axis shows a gap of zero
    for above, color, label in ((False, BLUE, "near tie"), (True, ORANGE, "above the noise floor")):
        chosen = [index for index, each in enumerate(over) if each is above]
        xs, ys = [picture.positions[index] for index in chosen], [max(picture.gaps[index], least) for index in chosen]
        axes.plot(xs, ys, "x" if above else "o", color=color, label=label, linestyle="none")
    axes.axhline(picture.floor, color=INK, linewidth=1, linestyle="--", label="noise floor")
    if wide:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="position in the output", ylabel="gap (nats)", title=picture.title)
    _legend(axes)


def _law(picture: Law) -> str:
    """The most different outcomes are drawn; the caption counts them all."""
    rows = list(zip(picture.labels, picture.expected, picture.observed, strict=True))
    if len(rows) > MOST_BARS:
        widest = sorted(range(len(rows)), key=lambda index: -abs(rows[index][1] - rows[index][2]))[:MOST_BARS]
        rows = [rows[index] for index in sorted(widest)]
    groups = [
        Group(label, (Bar(expected, GREY, f"{expected:.3g}"), Bar(observed, BLUE, f"{observed:.3g}")))
        for label, expected, observed in rows
    ]
    return bar_chart(picture.title, groups, legend=(("expected", GREY), ("observed", BLUE)))


def _coverage(picture: Coverage) -> str:
    """How often each path was reached; on a logarithmic scale where the counts differ too much for one picture."""
    counts = dict(list(picture.counts.items())[:MOST_BARS])
    wide = max(counts.values(), default=0) > 100 * min((count for count in counts.values() if count), default=1)
    groups = [
        Group(
            label,
            (
                Bar(math.log1p(max(count, 0)) if wide else count, BLUE, f"{count}")
                if count
                else Bar(0.0, ORANGE, "never"),
            ),
        )
        for label, count in counts.items()
    ]
    return bar_chart(f"{picture.title} ({'times, logarithmic scale' if wide else 'times'})", groups)


def _legend(axes: Axes, *, reverse: bool = False) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), reverse=reverse)


DRAW: dict[str, Callable[..., None]] = {
    "wealth": _wealth,
    "acceptance": _acceptance,
    "divergences": _divergences,
}


def _embeddable(svg: str, *, title: str, prefix: str) -> str:
    """Drop what inline SVG does not need (prolog, namespaces, metadata) and let the page choose the ink."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    opening, rest = body.split(">", 1)
    box = re.search(r'viewBox="([^"]+)"', opening)
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    head = f'<svg viewBox="{box.group(1) if box else "0 0 446 209"}" role="img" aria-label="{label}"'
    body = f"{head}>{rest}".replace("xlink:href", "href").replace(INK, "currentColor")
    return re.sub(r'( id="| href="#|url\(#)', rf"\g<1>{prefix}", body)

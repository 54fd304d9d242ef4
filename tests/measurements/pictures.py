"""The figures of the reports, as SVG; the font is that of the page's viewer and nothing is rendered at random."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


@dataclass(frozen=True, slots=True)
class Bar:
    """One measured rate with its interval, to be compared with `promised`."""

    name: str
    promised: float
    rate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A series; `y` may hold None where a method never succeeds."""

    x: Sequence[float]
    y: Sequence[float | None]
    marker: str = "o"
    dashed: bool = False


def draw_rates(
    path: Path, bars: Sequence[Bar], *, xlabel: str = "share of runs in which the wealth ever crossed 1/alpha"
) -> None:
    """Rates on a logarithmic axis, grouped by promise, each promise a vertical line."""
    promises = list(dict.fromkeys(bar.promised for bar in bars))
    names = list(dict.fromkeys(bar.name for bar in bars))
    figure = Figure(figsize=(9, 1.2 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots()
    for color, promised in zip(COLORS, promises, strict=False):
        axes.axvline(promised, color=color, linestyle="--", linewidth=1, label=f"promised: at most {promised:g}")
        for bar in (bar for bar in bars if bar.promised == promised):
            height = names.index(bar.name)
            smallest = promised / 100
            axes.plot([max(bar.low, smallest), bar.high], [height, height], color=color, linewidth=2)
            axes.plot([max(bar.rate, smallest)], [height], "o", color=color, markersize=5)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(xlabel, fontsize=9)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=len(promises), frameon=False)
    save(figure, path)


def draw_lines(
    path: Path,
    panels: Mapping[str, Mapping[str, Line]],
    *,
    xlabel: str,
    ylabel: str,
    hline: tuple[float, str] | None = None,
) -> None:
    """Panels side by side, each with the same series on logarithmic axes; gaps where there is no value."""
    figure = Figure(figsize=(4.6 * len(panels), 4.6), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    for axes, (title, lines) in zip(grid[0], panels.items(), strict=True):
        for color, (name, line) in zip(COLORS, lines.items(), strict=False):
            points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None]
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                color=color,
                marker=line.marker,
                markersize=4,
                linestyle="--" if line.dashed else "-",
                label=name,
            )
        if hline is not None:
            axes.axhline(hline[0], color="gray", linewidth=0.8, linestyle=":")
            axes.annotate(
                hline[1], (0.02, hline[0]), xycoords=("axes fraction", "data"), fontsize=8, va="bottom", color="gray"
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(xlabel, fontsize=9)
        axes.set_title(title, fontsize=10)
        axes.grid(which="major", linewidth=0.3)
    grid[0][0].set_ylabel(ylabel, fontsize=9)
    figure.legend(
        *grid[0][0].get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside lower center", ncols=2
    )
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write the figure; an SVG without date and random ids, so that the same numbers give the same file."""
    with mpl.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)

"""Bar charts as inline SVG, written directly: a run has a hundred of them, and a plotting library needs 80 ms for each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, FONT, TITLE_FONT = 446, 9, 10  # as the pictures that matplotlib draws
ROW, BAR, GAP, MARGIN = 17, 12, 6, 8
CHARACTER = 0.56 * FONT  # the mean width of a sans-serif character, rather too wide than too narrow
MOST_LABEL = 200


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its length on the chart's scale (not finite: no bar), its colour, and the number written behind it."""

    length: float
    color: str
    text: str


@dataclass(frozen=True, slots=True)
class Group:
    """The bars that share one label, from top to bottom."""

    label: str
    bars: tuple[Bar, ...]


def bar_chart(title: str, groups: Sequence[Group], *, legend: Sequence[tuple[str, str]] = ()) -> str:
    """Draw horizontal bars; `legend` names colours as (name, colour). Text takes the page's colour and font size 9."""
    longest = max((len(group.label) for group in groups), default=0)
    start = MARGIN + min(MOST_LABEL, CHARACTER * longest) + GAP
    written = max((len(bar.text) for group in groups for bar in group.bars), default=0)
    room = WIDTH - MARGIN - GAP - CHARACTER * written - start
    lengths = [bar.length for group in groups for bar in group.bars if math.isfinite(bar.length)]
    scale = room / max(lengths) if max(lengths, default=0.0) > 0 else 0.0
    parts = [_text(start, 14, title, size=TITLE_FONT)]
    top = 24.0
    if legend:
        parts += _legend(legend, start, top)
        top += ROW
    first = top
    for group in groups:
        height = max(ROW, BAR * len(group.bars) * 0.75 + GAP)
        parts.append(_label(group.label, start - GAP, top + height / 2))
        thickness = (height - GAP + 1) / max(1, len(group.bars))
        for index, bar in enumerate(group.bars):
            y = top + (GAP - 1) / 2 + index * thickness
            length = max(0.0, bar.length * scale) if math.isfinite(bar.length) else 0.0
            parts.append(
                f'<rect x="{start:.1f}" y="{y:.1f}" width="{length:.1f}" height="{thickness:.1f}" fill="{bar.color}"/>'
            )
            parts.append(
                _text(start + length + GAP / 2, y + thickness / 2 + 3, bar.text, size=min(FONT, thickness + 1))
            )
        top += height
    parts.append(f'<path d="M{start:.1f} {first:.1f}V{top:.1f}" stroke="currentColor" stroke-width="0.8" fill="none"/>')
    return (
        f'<svg viewBox="0 0 {WIDTH} {top + MARGIN:.0f}" role="img" aria-label="{escape(title)}" '
        f'font-family="sans-serif" font-size="{FONT}" fill="currentColor">{"".join(parts)}</svg>'
    )


def _legend(entries: Sequence[tuple[str, str]], x: float, top: float) -> list[str]:
    parts = []
    for name, color in entries:
        parts.append(f'<rect x="{x:.1f}" y="{top + 2:.1f}" width="8" height="8" fill="{color}"/>')
        parts.append(_text(x + 12, top + 9, name, size=FONT - 1))
        x += 12 + CHARACTER * len(name) + 2 * GAP
    return parts


def _label(label: str, x: float, middle: float) -> str:
    most = int(MOST_LABEL / CHARACTER)
    shown = label if len(label) <= most else f"{label[: most - 1]}…"
    return (
        f'<text x="{x:.1f}" y="{middle + 3:.1f}" text-anchor="end">{escape(shown)}<title>{escape(label)}</title></text>'
    )


def _text(x: float, y: float, text: str, *, size: float) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:.3g}">{escape(text)}</text>'

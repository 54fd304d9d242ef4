"""The log of a run, one JSON object a line, and its picture."""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

SMOOTHING = 0.05


def truncate(path: Path, *, steps: int) -> None:
    """Drop what was logged after the first `steps` updates, and a line that a kill cut short."""
    if not path.exists():
        return
    kept = [entry for entry in read(path) if entry["step"] <= steps]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in kept))


def read(path: Path) -> list[dict[str, Any]]:
    """All complete entries."""
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def plot(entries: list[dict[str, Any]], path: Path) -> None:
    """Draw the loss and the overlap by position over the steps, smoothed, as PNG."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    losses, overlaps = figure.subplots(1, 2)
    steps = [entry["step"] for entry in entries]
    for name in ("loss", "cross_entropy", "distance", "confidence"):
        values = [entry[name] for entry in entries]
        if any(values):
            losses.plot(steps, _smooth(values), label=name.replace("_", " "))
    losses.set(xlabel="step", ylabel="loss", ylim=(0, None))
    losses.legend(frameon=False)
    for position in range(len(entries[0]["acceptance"]) if entries else 0):
        values = [entry["acceptance"][position] for entry in entries]
        overlaps.plot(steps, _smooth(values), label=str(position + 1))
    overlaps.set(xlabel="step", ylabel="1 - TV(draft, target)", ylim=(0, 1))
    overlaps.legend(title="position", frameon=False, ncols=2, loc="lower right")
    figure.savefig(path, dpi=120)


def _smooth(values: list[float]) -> list[float]:
    """An exponential mean that starts as the plain one."""
    smooth: list[float] = []
    for count, value in enumerate(values, 1):
        share = max(SMOOTHING, 1 / count)
        smooth.append(value if not smooth else smooth[-1] + share * (value - smooth[-1]))
    return smooth

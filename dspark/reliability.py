"""Whether confidences mean what they say: calibration error, ranking power, and the diagram of both."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import rankdata

from dspark.rounds import RecordedRounds

NUM_BINS = 15


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predicted probabilities `[M]` and what happened, `[M]` bool."""

    predicted: NDArray[np.float64]
    happened: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """The predictions in [low, high): how many, their mean, and the share that came true."""

    low: float
    high: float
    count: int
    predicted: float
    happened: float


def prefix_survival(rounds: RecordedRounds, position: int) -> Predictions:
    """That drafts 0 to `position` are all accepted: a_k = c_0 ... c_k, over all rounds that drafted that far."""
    drafted = rounds.lengths > position
    predicted = rounds.confidences[drafted, : position + 1].prod(1)
    return Predictions(predicted, rounds.accepted[drafted] > position)


def conditional_acceptance(rounds: RecordedRounds, position: int) -> Predictions:
    """That draft `position` is accepted: c_k, over the rounds that drafted that far and accepted all drafts before it."""
    reached = (rounds.lengths > position) & (rounds.accepted >= position)
    return Predictions(rounds.confidences[reached, position], rounds.accepted[reached] > position)


def pooled(rounds: RecordedRounds) -> Predictions:
    """Prefix survival at all positions together; one round counts once for each of its drafts."""
    parts = [prefix_survival(rounds, position) for position in range(rounds.num_positions)]
    return Predictions(
        np.concatenate([each.predicted for each in parts]), np.concatenate([each.happened for each in parts])
    )


def reliability_table(predictions: Predictions, *, num_bins: int = NUM_BINS) -> list[Bin]:
    """Bins of equal width on [0, 1], the last closed; empty ones are left out."""
    places = np.minimum((predictions.predicted * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(places, minlength=num_bins)
    predicted = np.bincount(places, predictions.predicted, num_bins)
    happened = np.bincount(places, predictions.happened, num_bins)
    return [
        Bin(
            low=index / num_bins,
            high=(index + 1) / num_bins,
            count=int(counts[index]),
            predicted=float(predicted[index] / counts[index]),
            happened=float(happened[index] / counts[index]),
        )
        for index in np.flatnonzero(counts)
    ]


def calibration_error(predictions: Predictions, *, num_bins: int = NUM_BINS) -> float:
    """ECE: the mean over predictions of |mean prediction - share that came true| of their bin (equal width); NaN for none.

    Noise alone gives up to 0.4 sqrt(bins / M), so a small value needs many predictions. (Naeini et al. 2015)
    """
    if not len(predictions.predicted):
        return math.nan
    table = reliability_table(predictions, num_bins=num_bins)
    return sum(each.count * abs(each.predicted - each.happened) for each in table) / len(predictions.predicted)


def area_under_curve(predictions: Predictions) -> float:
    """AUC: the probability that what happened was predicted higher than what did not, ties half; NaN where one is missing."""
    num_happened = int(predictions.happened.sum())
    num_pairs = num_happened * (len(predictions.happened) - num_happened)
    if num_pairs == 0:
        return math.nan
    ranks = rankdata(predictions.predicted)[predictions.happened].sum()
    return float((ranks - num_happened * (num_happened + 1) / 2) / num_pairs)


def reliability_diagram(stages: Mapping[str, RecordedRounds]) -> Figure:
    """Prefix survival, predicted against observed, a panel for each named stage (before, after).

    The area of a dot is the number of predictions, at all positions; a line is one position, in bins of 30 or more.
    """
    figure = Figure(figsize=(4.2 * len(stages), 4.6), layout="constrained")
    panels = figure.subplots(1, len(stages), squeeze=False)[0]
    for axes, (name, rounds) in zip(panels, stages.items(), strict=True):
        _panel(axes, rounds)
        error = calibration_error(pooled(rounds))
        axes.set_title(f"{name}: ECE over all positions {error:.1%}", fontsize=10)
        axes.set(xlabel="predicted survival of the prefix", ylabel="share of prefixes that were accepted")
    panels[-1].legend(frameon=False, fontsize=8, loc="upper left", title="position", title_fontsize=8)
    return figure


def _panel(axes: Axes, rounds: RecordedRounds) -> None:
    axes.plot([0, 1], [0, 1], color="#8a929a", linewidth=0.8, linestyle="--")
    for position in range(rounds.num_positions):
        bins = [each for each in reliability_table(prefix_survival(rounds, position)) if each.count >= 30]
        color = colormaps["plasma"](0.85 * position / max(1, rounds.num_positions - 1))
        predicted, happened = ([getattr(each, name) for each in bins] for name in ("predicted", "happened"))
        axes.plot(predicted, happened, color=color, linewidth=1, marker=".", markersize=3, label=str(position + 1))
    table = reliability_table(pooled(rounds))
    most = max(each.count for each in table)
    axes.scatter(
        [each.predicted for each in table],
        [each.happened for each in table],
        s=[6 + 150 * each.count / most for each in table],
        color="#23272b",
        alpha=0.6,
        zorder=3,
        linewidths=0,
    )
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    axes.spines[["right", "top"]].set_visible(False)

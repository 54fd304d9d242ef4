"""Fit a calibration to recorded rounds."""

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from dspark.calibration import Calibration
from dspark.reliability import NUM_BINS, Predictions, calibration_error
from dspark.rounds import RecordedRounds

# Symmetric about 1, which is one of them; a step is 3%.
TEMPERATURES: tuple[float, ...] = tuple(1.03**step for step in range(-80, 81))
ROUNDS_PER_BIN = 20


def calibrated(rounds: RecordedRounds, calibration: Calibration) -> RecordedRounds:
    """The same rounds as a calibrated drafter would have reported them."""
    return RecordedRounds(
        confidences=calibration.apply_to_table(rounds.confidences),
        accepted=rounds.accepted,
        lengths=rounds.lengths,
        request_ids=rounds.request_ids,
    )


def fit_calibration(rounds: RecordedRounds, *, num_bins: int = NUM_BINS) -> Calibration:
    """Sequential temperature scaling (DSpark, arXiv 2607.05147): left to right, the temperature of the least ECE of a_k.

    a_k, the product of the corrected confidences up to k, predicts that drafts 0 to k are all accepted; every round that drafted
    k counts, whether it was reached or not. Of equal temperatures the one nearest to 1 is taken. Raises ValueError where a
    position has too few rounds for its bins, and warns where the search ends at its edge.
    """
    needed = ROUNDS_PER_BIN * num_bins
    temperatures: list[float] = []
    survival = np.ones(len(rounds))
    for position in range(rounds.num_positions):
        drafted = rounds.lengths > position
        num_drafted = int(drafted.sum())
        if num_drafted < needed:
            raise ValueError(
                f"{num_drafted} rounds drafted position {position + 1}; {num_bins} bins need at least {needed}. Record "
                "more rounds, or shorter blocks."
            )
        before, logits = survival[drafted], logit(rounds.confidences[drafted, position])
        happened = rounds.accepted[drafted] > position
        best = min(TEMPERATURES, key=lambda each: (_error(before, logits, happened, each, num_bins), abs(np.log(each))))
        temperatures.append(best)
        survival[drafted] *= expit(logits / best)
    if {TEMPERATURES[0], TEMPERATURES[-1]} & set(temperatures):
        warnings.warn(
            f"temperatures are {', '.join(f'{each:.2g}' for each in temperatures)}; the search ends at {TEMPERATURES[0]:.2g} and "
            f"{TEMPERATURES[-1]:.2g}, and confidences that need as much know little. Train the confidence head longer.",
            stacklevel=2,
        )
    return Calibration(tuple(temperatures))


def _error(
    before: NDArray[np.float64],
    logits: NDArray[np.float64],
    happened: NDArray[np.bool_],
    temperature: float,
    num_bins: int,
) -> float:
    return calibration_error(Predictions(before * expit(logits / temperature), happened), num_bins=num_bins)

"""What tells a logic error from rounding: where outputs part, and whether they part right after rejections."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import hypergeom


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """`holds` False speaks for a bug of logic.

    `false_alarm` bounds the probability that it does not hold although its null is true; 0 for comparisons that are
    exact where the arithmetic is. `p_value` is given by the statistical control.
    """

    holds: bool
    reason: str
    false_alarm: float
    p_value: float


def first_divergence(expected: Sequence[int], observed: Sequence[int]) -> int | None:
    """Index of the first difference (the shorter length where one is a prefix of the other), None where equal."""
    for index, (left, right) in enumerate(zip(expected, observed, strict=False)):
        if left != right:
            return index
    return None if len(expected) == len(observed) else min(len(expected), len(observed))


def divergences_do_not_cluster(
    diverges: npt.ArrayLike, after_rejection: npt.ArrayLike, *, alpha: float = 1e-3
) -> Control:
    """Control (c): divergences (or near ties) are no more frequent right after rejections than elsewhere.

    Both arguments are boolean [N], over all positions of all outputs. Given the two totals, the number of divergences
    right after a rejection is hypergeometric when the two are independent (Fisher's exact test, one-sided), so the
    control fails with probability at most `alpha` then. Positions are taken as exchangeable: near ties that cluster
    for the target's own reasons (low-entropy text) weaken it, so it is evidence for a diagnosis and no gate of its
    own.
    """
    divergent, marked = np.asarray(diverges, dtype=bool), np.asarray(after_rejection, dtype=bool)
    if divergent.shape != marked.shape or divergent.ndim != 1:
        raise ValueError(
            f"shapes {divergent.shape} and {marked.shape}; both must be [N]; pass one flag per position to each"
        )
    hits = int((divergent & marked).sum())
    p_value = float(hypergeom.sf(hits - 1, divergent.size, int(marked.sum()), int(divergent.sum())))
    return Control(
        holds=p_value > alpha,
        reason=f"{hits} of {int(divergent.sum())} divergences come right after a rejection, "
        f"as do {int(marked.sum())} of {divergent.size} positions (p = {p_value:.2g})",
        false_alarm=alpha,
        p_value=p_value,
    )

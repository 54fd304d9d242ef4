"""Greedy identity at every position: the emitted token is the arg max of the row that its own prefix gives."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """A position at which the emitted token is neither the arg max nor a near tie; `gap` is in logits."""

    position: int
    emitted: int
    argmax: int
    gap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GreedyJudgement:
    """One output, position by position.

    `num_exact` tokens are (one of) the arg max, `near_ties` lie within the noise, `divergences` do not. `largest_gap`
    is that of any token, divergences included.
    """

    num_positions: int
    num_exact: int
    near_ties: int
    largest_gap: float
    near_tie_positions: tuple[int, ...]
    divergences: tuple[Divergence, ...]

    @property
    def exact(self) -> bool:
        """Whether every token is the arg max, without help from the noise floor."""
        return self.num_exact == self.num_positions


def judge_greedy(token_ids: Sequence[int], logits_rows: npt.ArrayLike, *, floor: float) -> GreedyJudgement:
    """Judge greedy tokens against the processed target rows at their own prefixes.

    `logits_rows` [N, V], -inf where a token is banned; row t follows the EMITTED tokens before t, so by induction all
    exact means identity with the target's greedy output, and one divergence does not spoil the positions after it.
    `floor` is the largest change of one logit between correct computations of the row
    (`NoiseFloor.max_logit_difference`, or 0 where the arithmetic is the same). With our logits z and the decoder's z'
    within `floor` of each other, its choice e has z'[e] >= z'[top], hence z[top] - z[e] <= 2 floor: a larger gap is
    no rounding. Of exactly tied tokens any is the arg max. ValueError where the lengths differ or a row has a NaN,
    +inf, or no token left.
    """
    rows = np.asarray(logits_rows, dtype=np.float64)
    emitted = np.asarray(token_ids, dtype=np.int64)
    if rows.ndim != 2 or rows.shape[0] != emitted.size:
        raise ValueError(
            f"logits_rows has shape {list(rows.shape)} for {emitted.size} tokens; it must be [N, V], a row per token; "
            "score the emitted prefix"
        )
    if not emitted.size:
        return GreedyJudgement(
            num_positions=0, num_exact=0, near_ties=0, largest_gap=0.0, near_tie_positions=(), divergences=()
        )
    outside = (emitted < 0) | (emitted >= rows.shape[1])
    if outside.any():
        raise ValueError(
            f"token id {int(emitted[outside][0])} is outside the vocabulary [0, {rows.shape[1]}); check the decoder"
        )
    top = rows.max(axis=1)  # [N]; NaN where the row has one
    if not np.isfinite(top).all():
        position = int(np.argmin(np.isfinite(top)))
        raise ValueError(
            f"logits_rows[{position}] has maximum {top[position]}; it must be finite; check the target's row"
        )
    gaps = top - np.take_along_axis(rows, emitted[:, None], axis=1)[:, 0]  # [N]
    exact = gaps == 0
    near = ~exact & (gaps <= 2 * floor)
    argmax = rows.argmax(axis=1)
    divergences = tuple(
        Divergence(position=int(t), emitted=int(emitted[t]), argmax=int(argmax[t]), gap=float(gaps[t]))
        for t in np.flatnonzero(~exact & ~near)
    )
    return GreedyJudgement(
        num_positions=emitted.size,
        num_exact=int(exact.sum()),
        near_ties=int(near.sum()),
        largest_gap=float(gaps.max()),
        near_tie_positions=tuple(int(t) for t in np.flatnonzero(near)),
        divergences=divergences,
    )

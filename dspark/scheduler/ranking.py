"""The drafts of all rows in the order in which they would be verified: the likeliest to survive first."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul


@dataclass(frozen=True, slots=True)
class Candidate:
    """Draft `position` of row `row`, and how probable it is that it and all before it in its row are accepted."""

    row: int
    position: int
    survival: float


def ranked(confidences: Sequence[Sequence[float]]) -> list[Candidate]:
    """All drafts by falling survival; on a tie the earlier position, then the earlier row.

    Survival never rises along a row, so a row's drafts stand in their own order, and what stands before draft k of a row
    depends on nothing that depends on draft k.
    """
    candidates = [
        Candidate(row, position, survival)
        for row, values in enumerate(confidences)
        for position, survival in enumerate(survivals(values))
    ]
    return sorted(candidates, key=lambda each: (-each.survival, each.position, each.row))


def survivals(confidences: Sequence[float]) -> list[float]:
    """a_k = c_1 ... c_k; what rounding has put outside [0, 1] counts as the nearest bound, NaN as 0."""
    return list(accumulate((min(each, 1.0) if each > 0 else 0.0 for each in confidences), mul))


def counted(candidates: Sequence[Candidate], num_rows: int) -> tuple[int, ...]:
    """How many candidates each row has."""
    counts = [0] * num_rows
    for each in candidates:
        counts[each.row] += 1
    return tuple(counts)

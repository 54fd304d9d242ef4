"""Seconds against a count, of which some points were measured."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise


def seconds_at(counts: Sequence[int], seconds: Sequence[float], count: float) -> float:
    """Linear between the points; below the first as the first; beyond the last on as between the last two, never falling.

    `counts` rise, and there is at least one.
    """
    right = bisect_left(counts, count)
    if right == len(counts):
        slope = 0.0
        if len(counts) > 1:
            slope = max(0.0, (seconds[-1] - seconds[-2]) / (counts[-1] - counts[-2]))
        return seconds[-1] + slope * (count - counts[-1])
    if right == 0 or counts[right] == count:
        return seconds[right]
    left = right - 1
    share = (count - counts[left]) / (counts[right] - counts[left])
    return (1 - share) * seconds[left] + share * seconds[right]


def require_rising(name: str, counts: Sequence[int], *, smallest: int) -> None:
    """Raise ValueError (value, rule, remedy) unless there are `counts` and they rise from at least `smallest`."""
    if not counts or counts[0] < smallest or any(right <= left for left, right in pairwise(counts)):
        raise ValueError(f"{name} are {list(counts)}; they must rise from at least {smallest}. Sort them.")


def require_positive(name: str, values: Sequence[float]) -> None:
    """Raise ValueError (value, rule, remedy) unless all are positive and finite."""
    if not all(0 < value < math.inf for value in values):
        raise ValueError(f"{name} are {list(values)}; they must be positive and finite. Measure the profile again.")

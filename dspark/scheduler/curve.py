"""Seconds against a count, of which some points were measured."""

from bisect import bisect_left
from collections.abc import Sequence


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

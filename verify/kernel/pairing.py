"""Pairs of outcomes that must be independent: two rows of a call, one row in two calls."""

from typing import TypeAlias

import numpy as np

from verify.betting.evidence import Floats, Ints
from verify.kernel.counts import Table

Pair: TypeAlias = tuple[Ints, Ints]
"""Outcomes `[N]` and `[N]`; no outcome is in two pairs of one call."""
LONGEST_LAG = 2  # calls


def of_rows(codes: Ints, random: np.random.Generator) -> Pair:
    """Rows of one call at a distance that is a power of two, another one in every call: they come from lanes, warps and tiles."""
    distance = 2 ** int(random.integers(max(1, len(codes).bit_length() - 1)))  # two of them fit
    start = distance if len(codes) >= 3 * distance and random.random() < 0.5 else 0
    usable = (len(codes) - start) // (2 * distance) * 2 * distance
    folded = codes[start : start + usable].reshape(-1, 2, distance)
    return folded[:, 0].reshape(-1), folded[:, 1].reshape(-1)


class Calls:
    """Every row in two calls, which are one or two apart and begin at even and at odd ones."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.first: Ints | None = None
        self.wait = int(random.integers(2))

    def take(self, codes: Ints) -> Pair | None:
        """The outcomes of the next call; a pair where it ends one."""
        if self.wait:
            self.wait -= 1
            return None
        if self.first is None:
            self.first, self.wait = codes, int(self.random.integers(LONGEST_LAG))
            return None
        pair = self.first, codes
        self.first, self.wait = None, int(self.random.integers(2))
        return pair


def table_of(first: Floats, second: Floats) -> Table:
    """Two independent outcomes; and as if the second were a copy of the first."""
    return Table(law=np.multiply.outer(first, second).reshape(-1), mistakes={"identical": np.diag(first).reshape(-1)})

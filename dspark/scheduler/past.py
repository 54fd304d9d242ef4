"""A round gone by, and what the same number of drafts would be worth today."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from dspark.scheduler.profile import SpeedProfile
from dspark.scheduler.ranking import Candidate


@dataclass(frozen=True, slots=True)
class Past:
    """`gains[n]` is the expected number of accepted drafts of `num_rows` rows, had the n likeliest of the round been verified."""

    num_rows: int
    gains: tuple[float, ...]

    @classmethod
    def of(cls, candidates: Sequence[Candidate], num_rows: int) -> "Past":
        """The round of `num_rows` rows, at least one, whose drafts `ranked` has put into this order."""
        gains = accumulate((each.survival for each in candidates), initial=0.0)
        return cls(num_rows, tuple(gains))

    def best(self, num_rows: int, speed: SpeedProfile) -> tuple[int, float]:
        """How many drafts of `num_rows` rows have the largest theta, and that theta; the smallest such number on a tie.

        Rows that have left or joined since have no place in the past, so it counts as a sample of rows like today's: n drafts of
        `num_rows` rows are worth what n * past / today were worth then, scaled back.
        """
        most = (len(self.gains) - 1) * num_rows // self.num_rows
        places = np.arange(most + 1) * self.num_rows // num_rows
        expected = num_rows + num_rows / self.num_rows * np.array(self.gains)[places]
        theta = expected * [speed.at(num_rows + num_drafts) for num_drafts in range(most + 1)]
        capacity = int(theta.argmax())
        return capacity, float(theta[capacity])

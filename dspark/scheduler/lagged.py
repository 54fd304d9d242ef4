"""The asynchronous scheduler: how many drafts fit is read off confidences of an earlier round, which ones off this round's."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from dspark.scheduler.algorithm import PrefixScheduler
from dspark.scheduler.profile import SpeedProfile
from dspark.scheduler.protocol import ScheduleSession
from dspark.scheduler.ranking import counted, ranked


class LaggedScheduler:
    """The production variant of the DSpark paper: a capacity from the confidences of `lag` rounds ago.

    The capacity is the best of all, not the first that stops improving: speed falls in steps, so theta can have several
    peaks. The likeliest survivors of this round fill it. The first `lag` rounds of a batch have no such past and use Algorithm 1.

    Lossless: the capacity is a function of what was known before this round drafted anything, and a search over it may look
    everywhere. Draft k of row r is verified iff fewer drafts than the capacity rank before it; those are earlier drafts of its
    row and drafts of other rows, ranked by survivals that draft k has no part in. So its admission is settled before it
    is seen. With `lag` 0 it would not be, and that is refused.
    """

    def __init__(self, profile: SpeedProfile, *, lag: int = 2) -> None:
        if lag < 1:
            raise ValueError(
                f"lag is {lag}; it must be at least 1: a capacity from this round's confidences would let drafts decide about "
                "themselves. Give 2, or use PrefixScheduler."
            )
        self.profile = profile
        self.lag = lag

    def open(self) -> ScheduleSession:
        """Begin a batch."""
        return LaggedSession(self.profile, self.lag)


@dataclass(frozen=True, slots=True)
class Past:
    """A round gone by: `gains[n]` is the expected number of accepted drafts had its n likeliest been verified."""

    num_rows: int
    gains: tuple[float, ...]


class LaggedSession:
    """The last `lag` rounds of one batch."""

    def __init__(self, profile: SpeedProfile, lag: int) -> None:
        self.profile = profile
        self.first = PrefixScheduler(profile)
        self.past: deque[Past] = deque(maxlen=lag)

    def admit(self, confidences: Sequence[Sequence[float]]) -> tuple[int, ...]:
        """See `ScheduleSession.admit`; the number of rows may change from round to round."""
        num_rows = len(confidences)
        if num_rows == 0:
            return ()
        candidates = ranked(confidences)
        if len(self.past) == self.past.maxlen:
            admitted = counted(candidates[: self._capacity(self.past[0], num_rows)], num_rows)
        else:
            admitted = self.first.open().admit(confidences)
        gains = accumulate((each.survival for each in candidates), initial=0.0)
        self.past.append(Past(num_rows, tuple(gains)))
        return admitted

    def _capacity(self, past: Past, num_rows: int) -> int:
        """The number of drafts with the largest theta; the smallest such on a tie.

        Rows that have left or joined since have no place in the past, so it counts as a sample of rows like today's: n drafts of
        `num_rows` rows are worth what n * past / today were worth then, scaled back.
        """
        scale = num_rows / past.num_rows

        def theta(num_drafts: int) -> float:
            gain = scale * past.gains[num_drafts * past.num_rows // num_rows]
            return (num_rows + gain) * self.profile.at(num_rows + num_drafts)

        most = (len(past.gains) - 1) * num_rows // past.num_rows
        return max(range(most + 1), key=theta)

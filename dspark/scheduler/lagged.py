"""The asynchronous scheduler: how many drafts fit is read off confidences of an earlier round, which ones off this round's."""

from collections import deque
from collections.abc import Sequence

from dspark.scheduler.algorithm import PrefixScheduler
from dspark.scheduler.past import Past
from dspark.scheduler.profile import Speeds
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

    def __init__(self, profile: Speeds, *, lag: int = 2) -> None:
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


class LaggedSession(ScheduleSession):
    """The last `lag` rounds of one batch."""

    def __init__(self, profile: Speeds, lag: int) -> None:
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
            capacity, _ = self.past[0].best(num_rows, self.profile.of_rows(num_rows))
            admitted = counted(candidates[:capacity], num_rows)
        else:
            admitted = self.first.admit(confidences)
        self.past.append(Past.of(candidates, num_rows))
        return admitted

"""Rounds without drafts where drafting does not pay: decided before it is done, from rounds gone by."""

from collections import deque
from collections.abc import Sequence

from dspark.scheduler.past import Past
from dspark.scheduler.protocol import Scheduler, ScheduleSession
from dspark.scheduler.ranking import ranked
from dspark.scheduler.round_profile import RoundProfile

MEMORY = 8  # rounds
PATIENCE = 32  # rounds without drafts, after which one drafts: what the texts are like may have changed


class SkippingScheduler:
    """Drafts only in rounds where that raises the expected tokens per second; then another scheduler decides.

    Algorithm 1 weighs verification, by when the drafts are paid for. With many rows a plain round can emit more tokens a second
    than the best that drafts. What drafts would gain is read off the confidences of the last rounds that drafted.

    Lossless: whether a round drafts is settled before it does, by rounds gone by and the number of rows.
    """

    def __init__(self, inner: Scheduler, profile: RoundProfile) -> None:
        self.inner = inner
        self.profile = profile

    def open(self) -> ScheduleSession:
        """Begin a batch."""
        return SkippingSession(self.inner.open(), self.profile)


class SkippingSession(ScheduleSession):
    """The last rounds of one batch that drafted, and how many have not since."""

    def __init__(self, inner: ScheduleSession, profile: RoundProfile) -> None:
        self.inner = inner
        self.profile = profile
        self.past: deque[Past] = deque(maxlen=MEMORY)
        self.pays: dict[int, bool] = {}  # by the number of rows, since the last round that drafted
        self.num_skipped = 0

    def wants_drafts(self, num_rows: int) -> bool:
        """See `ScheduleSession.wants_drafts`."""
        if num_rows not in self.pays:
            self.pays[num_rows] = self._pays(num_rows)
        if self.pays[num_rows] or self.num_skipped == PATIENCE:
            self.num_skipped = 0
            return self.inner.wants_drafts(num_rows)
        self.num_skipped += 1
        return False

    def admit(self, confidences: Sequence[Sequence[float]]) -> tuple[int, ...]:
        """See `ScheduleSession.admit`."""
        if confidences:
            self.past.append(Past.of(ranked(confidences), len(confidences)))
            self.pays.clear()
        return self.inner.admit(confidences)

    def _pays(self, num_rows: int) -> bool:
        """Whether the rounds on record, with the best of their drafts verified, would on average beat a plain one."""
        if not self.past:
            return True
        drafted = self.profile.of_rows(num_rows)
        rates = [past.best(num_rows, drafted)[1] for past in self.past]
        return sum(rates) / len(rates) > num_rows * self.profile.plain_rounds_per_second(num_rows)

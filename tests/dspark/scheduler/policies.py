"""The schedulers under test with pasts to begin from, and the one that looks ahead."""

from collections.abc import Callable, Sequence

from dspark.conformance import ROUNDS
from dspark.scheduler.algorithm import PrefixScheduler
from dspark.scheduler.fixed import FixedLength
from dspark.scheduler.lagged import LaggedScheduler
from dspark.scheduler.profile import SpeedProfile
from dspark.scheduler.protocol import Scheduler, ScheduleSession
from dspark.scheduler.ranking import counted, ranked
from dspark.scheduler.skipping import SkippingScheduler
from dspark.scheduler.threshold import StaticThreshold

Rows = Sequence[Sequence[float]]


class RetrospectiveScheduler(ScheduleSession):
    """The mistake: the best of all lengths, found with confidences that the drafts in question have decided."""

    def __init__(self, profile: SpeedProfile) -> None:
        self.profile = profile

    def open(self) -> ScheduleSession:
        return self

    def admit(self, confidences: Rows) -> tuple[int, ...]:
        num_rows, candidates = len(confidences), ranked(confidences)

        def theta(length: int) -> float:
            gain = sum(each.survival for each in candidates[:length])
            return (num_rows + gain) * self.profile.at(num_rows + length)

        return counted(candidates[: max(range(len(candidates) + 1), key=theta)], num_rows)


def profile_of(*speeds: float) -> SpeedProfile:
    """Speeds for 1, 2, 3, ... tokens."""
    return SpeedProfile(token_counts=tuple(range(1, len(speeds) + 1)), steps_per_second=speeds)


PAPER = profile_of(1.0, 0.5, 0.45)
CAUSAL: dict[str, Callable[[SpeedProfile], Scheduler]] = {
    "algorithm": PrefixScheduler,
    "lag 1": lambda profile: LaggedScheduler(profile, lag=1),
    "lag 2": LaggedScheduler,
    "skipping": lambda profile: SkippingScheduler(PrefixScheduler(profile), ROUNDS),
    "threshold": lambda profile: StaticThreshold(0.6),
    "fixed": lambda profile: FixedLength(1),
}


def after(scheduler: Scheduler, past: Sequence[Rows]) -> ScheduleSession:
    """A session that has seen some rounds."""
    session = scheduler.open()
    for rows in past:
        session.admit(rows)
    return session

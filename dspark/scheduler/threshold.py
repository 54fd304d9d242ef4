"""The static threshold: a row's drafts up to the first doubtful one."""

from collections.abc import Sequence

from dspark.scheduler.protocol import ScheduleSession


class StaticThreshold(ScheduleSession):
    """Stops each row at its first confidence below `threshold`, in [0, 1]; looks at neither load nor other rows.

    Lossless: draft k is verified iff c_1, ..., c_k all reach the threshold. c_k is computed from the text and drafts 1 to k - 1,
    so the decision is taken with draft k still unknown; drafts after the stop never had a say.
    """

    def __init__(self, threshold: float) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}; it must be between 0 and 1. Try 0.5.")
        self.threshold = threshold

    def open(self) -> ScheduleSession:
        """Begin a batch; there is no state."""
        return self

    def admit(self, confidences: Sequence[Sequence[float]]) -> tuple[int, ...]:
        """See `ScheduleSession.admit`; NaN is doubtful."""
        return tuple(
            next((position for position, each in enumerate(row) if not each >= self.threshold), len(row))
            for row in confidences
        )

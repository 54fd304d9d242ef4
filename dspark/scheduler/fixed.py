"""The schedule without a choice: what the others are compared with."""

from collections.abc import Sequence

from dspark.scheduler.protocol import ScheduleSession


class FixedLength(ScheduleSession):
    """Verifies the first `length` drafts of every row. Lossless: it looks at nothing."""

    def __init__(self, length: int) -> None:
        if length < 0:
            raise ValueError(f"length is {length}; it must be at least 0. Give 0 for plain decoding.")
        self.length = length

    def open(self) -> ScheduleSession:
        """Begin a batch; there is no state."""
        return self

    def admit(self, confidences: Sequence[Sequence[float]]) -> tuple[int, ...]:
        """See `ScheduleSession.admit`."""
        return tuple(min(self.length, len(row)) for row in confidences)

"""The schedule without a choice: what the others are compared with."""

from collections.abc import Sequence

from dspark.scheduler.protocol import ScheduleSession


class FixedLength(ScheduleSession):
    """Verifies the first `length` drafts of every row; 0 is plain decoding. Lossless: it looks at nothing."""

    def __init__(self, length: int) -> None:
        if length < 0:
            raise ValueError(f"length is {length}; it must be at least 0. Give 0 for plain decoding.")
        self.length = length

    def open(self) -> ScheduleSession:
        """Begin a batch; there is no state."""
        return self

    def wants_drafts(self, num_rows: int) -> bool:
        """See `ScheduleSession.wants_drafts`."""
        return self.length > 0

    def admit(self, confidences: Sequence[Sequence[float]]) -> tuple[int, ...]:
        """See `ScheduleSession.admit`."""
        return tuple(min(self.length, len(row)) for row in confidences)

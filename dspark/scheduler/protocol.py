"""The seam between the decoding loop and whatever decides how many drafts are verified."""

from collections.abc import Sequence
from typing import Protocol


class ScheduleSession(Protocol):
    """A scheduler's state for one batch."""

    def wants_drafts(self, num_rows: int) -> bool:
        """Whether this round drafts at all; asked before it does, so the answer cannot depend on its drafts."""
        return True

    def admit(self, confidences: Sequence[Sequence[float]]) -> tuple[int, ...]:
        """How many of its first drafts each row verifies.

        `confidences[r]` holds one number per draft of row r: how probable it is that the draft is accepted given that those
        before it are. Lossless only if whether draft k of a row is admitted depends on nothing that depends on draft k.
        """
        ...


class Scheduler(Protocol):
    """Decides for any number of batches; holds no state of a batch itself."""

    def open(self) -> ScheduleSession:
        """Begin a batch."""

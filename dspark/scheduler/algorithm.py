"""The hardware-aware prefix scheduler: verify what raises the expected tokens per second, and stop at the first that does not."""

from collections.abc import Sequence

from dspark.scheduler.profile import Speeds
from dspark.scheduler.protocol import ScheduleSession
from dspark.scheduler.ranking import counted, ranked


class PrefixScheduler(ScheduleSession):
    """Algorithm 1 of the DSpark paper (arXiv 2607.05147).

    With R rows, B tokens in the forward and tau expected tokens, theta = tau * SPS(B) starts at R * SPS(R). The drafts of all
    rows are admitted one at a time, likeliest survivor first, while theta strictly rises. With a `RoundProfile` a step
    is a whole round, drafting included, which is paid for by then whatever is verified.

    Lossless because of the early stop. Read the walk as a game: the next draft to consider and whether it pays are computed
    from texts, confidences that only earlier drafts of their rows decide, and the profile; its own value is looked at only after
    it was admitted. So "draft k of row r is verified" is settled before draft k of row r is seen, jointly for all rows,
    and at every stage of the game the tokens still to come follow the target's law. A search past the stop
    would let c_{k+1}, which draft k decides, vote on draft k: with the paper's example, 0.85 where the target says 0.70.
    """

    def __init__(self, profile: Speeds) -> None:
        self.profile = profile

    def open(self) -> ScheduleSession:
        """Begin a batch; there is no state."""
        return self

    def admit(self, confidences: Sequence[Sequence[float]]) -> tuple[int, ...]:
        """See `ScheduleSession.admit`."""
        num_rows = len(confidences)
        if num_rows == 0:
            return ()
        speed, candidates = self.profile.of_rows(num_rows), ranked(confidences)
        expected = float(num_rows)
        best = expected * speed.at(num_rows)
        for num_admitted, candidate in enumerate(candidates):
            expected += candidate.survival
            rate = expected * speed.at(num_rows + num_admitted + 1)
            if rate <= best:
                return counted(candidates[:num_admitted], num_rows)
            best = rate
        return counted(candidates, num_rows)

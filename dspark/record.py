"""The acceptance record of one generation; names as in vLLM's per-request metrics and AIPerf."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptanceRecord:
    """What was drafted and accepted, round by round.

    A round is one target forward after the prefill. `drafted_per_step[i]` drafts were verified in round i (what a scheduler
    kept from the target counts nowhere) and `accepted_per_step[i]` of them accepted and emitted (a stop token ends the count).
    `acceptance_histogram[k]` is the number of rounds that accepted exactly k.
    """

    num_spec_steps: int
    num_draft_tokens: int
    num_accepted_draft_tokens: int
    acceptance_histogram: tuple[int, ...]
    drafted_per_step: tuple[int, ...]
    accepted_per_step: tuple[int, ...]

    @classmethod
    def of(cls, *, drafted_per_step: Sequence[int], accepted_per_step: Sequence[int]) -> "AcceptanceRecord":
        """Derive every count from the two per-round lists."""
        histogram = [0] * (max(drafted_per_step, default=0) + 1)
        for accepted in accepted_per_step:
            histogram[accepted] += 1
        return cls(
            num_spec_steps=len(drafted_per_step),
            num_draft_tokens=sum(drafted_per_step),
            num_accepted_draft_tokens=sum(accepted_per_step),
            acceptance_histogram=tuple(histogram),
            drafted_per_step=tuple(drafted_per_step),
            accepted_per_step=tuple(accepted_per_step),
        )

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per round, the bonus or recovered token included: 1 + accepted / rounds."""
        return 1 + self.num_accepted_draft_tokens / self.num_spec_steps if self.num_spec_steps else 0.0

    @property
    def draft_acceptance_rate(self) -> float:
        """Accepted / verified drafts, the bonus excluded; 0 where nothing was verified."""
        return self.num_accepted_draft_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0

"""An acceptance record of rounds, as workers send it; standard library only."""

from collections.abc import Sequence
from typing import Any


def record_of_rounds(*, drafted: Sequence[int], accepted: Sequence[int]) -> dict[str, Any]:
    """All counts from the drafts and the accepted ones of each round, of which there is at least one."""
    return {
        "num_spec_steps": len(accepted),
        "num_draft_tokens": sum(drafted),
        "num_accepted_draft_tokens": sum(accepted),
        "acceptance_histogram": [accepted.count(number) for number in range(max(accepted) + 1)],
        "drafted_per_step": list(drafted),
        "accepted_per_step": list(accepted),
    }

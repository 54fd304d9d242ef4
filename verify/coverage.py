"""Coverage counters: which paths of a speculative decoder a check has really reached.

A property whose path was never reached is inconclusive, not passed: a run that never rejects a draft says nothing about
rollback, and a run that never accepts one says nothing about the bonus token.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from verify.models.observer import Round
from verify.protocol import AcceptanceRecord

HOW_TO_BE_SEEN = "decode with models.target itself, with a transformers cache or without one, or return a `record`"


@dataclass(slots=True)
class Coverage:
    """Counts by label: `rejected at j`, `accepted k of n`, `fully accepted`, `nothing drafted`, `stop at j`."""

    counts: Counter[str] = field(default_factory=Counter)
    unseen: int = 0

    def add(self, rounds: Sequence[Round] | None, record: AcceptanceRecord | None) -> None:
        """Count one answer: from the rounds seen from the target or, where they cannot be seen, from the record."""
        if rounds is not None:
            self.add_rounds(rounds)
        else:
            self.add_record(record)

    def add_rounds(self, rounds: Sequence[Round]) -> None:
        """Count one request's rounds."""
        for index, each in enumerate(rounds):
            last = index + 1 == len(rounds)
            if each.num_draft_tokens == 0:
                self.counts["nothing drafted"] += 1
            elif each.num_accepted == each.num_draft_tokens:
                self.counts["fully accepted"] += 1
            elif not last:  # the last round may have been cut by a limit or a stop token rather than by a rejection
                self.counts[f"rejected at {each.num_accepted}"] += 1
            if each.num_draft_tokens:
                self.counts[f"accepted {each.num_accepted} of {each.num_draft_tokens}"] += 1

    def add_record(self, record: AcceptanceRecord | None) -> None:
        """Count what a decoder reports, where its rounds cannot be seen."""
        rounds = rounds_told(record)
        if rounds is None:
            self.unseen += 1
        else:
            self.add_rounds(rounds)

    def missing(self, labels: Iterable[str]) -> list[str]:
        """The labels that were never reached."""
        return [label for label in labels if not self.counts[label]]

    def picture(self, title: str) -> dict[str, object]:
        """The counters for the report."""
        return {"kind": "coverage", "title": title, "counts": dict(sorted(self.counts.items()))}


def rounds_told(record: AcceptanceRecord | None) -> list[Round] | None:
    """The rounds that a decoder reports; None where it reports none one by one."""
    if record is None or record.drafted_per_step is None or record.accepted_per_step is None:
        return None
    rounds: list[Round] = []
    for drafted, accepted in zip(record.drafted_per_step, record.accepted_per_step, strict=True):
        rounds.append(Round(rounds[-1].output_offset + rounds[-1].num_emitted if rounds else 0, drafted, accepted))
    return rounds


def rejections_and_full_acceptance(num_draft_tokens: int) -> list[str]:
    """Labels that a check of rounds must reach: rejection at every offset, and full acceptance."""
    return [*(f"rejected at {offset}" for offset in range(num_draft_tokens)), "fully accepted"]

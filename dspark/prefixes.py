"""Texts that need not be read again."""

from collections.abc import Sequence
from dataclasses import dataclass

from dspark.cache import Context, open_context
from dspark.causal_model import CausalModel
from dspark.drafters.protocol import Drafter, DraftSession


@dataclass(frozen=True, slots=True)
class Beginning:
    """What the target has read of some rows, and what the drafter has learnt from that."""

    context: Context
    session: DraftSession | None

    @classmethod
    def empty(cls, target: CausalModel, drafter: Drafter | None, num_rows: int) -> "Beginning":
        """Nothing read."""
        layers = drafter.feature_layers if drafter else ()
        return cls(open_context(target, num_rows, layers=layers), drafter.open(num_rows) if drafter else None)

    def copy(self, rows: Sequence[int]) -> "Beginning":
        """Some rows, in memory of their own."""
        return Beginning(self.context.copy(rows), self.session.copy(rows) if self.session else None)

    def join(self, other: "Beginning") -> None:
        """Take over the rows of another one."""
        self.context.join(other.context)
        if self.session and other.session:
            self.session.join(other.session)

    def rewind(self, lengths: Sequence[int]) -> None:
        """Keep at most the first `lengths[b]` tokens of row b; fewer where the drafter does."""
        self.context.commit(self.session.rewind(lengths) if self.session else lengths)


class PrefixCache:
    """Texts that have been read; the one that was longest not used goes first. Only for targets that rewind."""

    def __init__(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self.entries: list[tuple[list[int], Beginning]] = []

    def begin(self, token_ids: Sequence[int]) -> Beginning | None:
        """One row of its own that has read the longest known beginning of a text; None where nothing is known."""
        lengths = [common_length(known, token_ids) for known, _ in self.entries]
        if not any(lengths):
            return None
        place = max(range(len(lengths)), key=lengths.__getitem__)
        entry = self.entries.pop(place)
        self.entries.append(entry)
        beginning = entry[1].copy([0])
        beginning.rewind([lengths[place]])
        return beginning

    def keep(self, token_ids: list[int], beginning: Beginning) -> None:
        """Take over one row that has read these tokens, and maybe some after them."""
        beginning.rewind([len(token_ids)])
        self.entries.append((token_ids, beginning))
        del self.entries[: max(0, len(self.entries) - self.max_entries)]


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common beginning."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))

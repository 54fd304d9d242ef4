"""Texts that need not be read again."""

from collections.abc import Sequence

from dspark.cache import Context


class PrefixCache:
    """Texts that the target has read, with their keys and values; the one that was longest not used goes first."""

    def __init__(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self.entries: list[tuple[list[int], Context]] = []

    def begin(self, token_ids: Sequence[int]) -> Context | None:
        """A context of its own that holds the longest known beginning of a text; None where nothing is known."""
        lengths = [common_length(known, token_ids) for known, _ in self.entries]
        if not any(lengths):
            return None
        place = max(range(len(lengths)), key=lengths.__getitem__)
        entry = self.entries.pop(place)
        self.entries.append(entry)
        context = entry[1].copy([0])
        context.commit([lengths[place]])
        return context

    def keep(self, token_ids: list[int], context: Context) -> None:
        """Take over a context of one row that has read these tokens, and maybe some after them."""
        context.commit([len(token_ids)])
        self.entries.append((token_ids, context))
        del self.entries[: max(0, len(self.entries) - self.max_entries)]


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common beginning."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))

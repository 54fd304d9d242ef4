"""Keys and values of rows that grow by counts of their own."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dspark.networks.attention import KeysValues
from dspark.spare_rows import add, keep
from dspark.transfer import Positions


class RowStates:
    """Per layer, keys and values of the first `lengths[b]` entries of row b; what lies behind them is rubbish and masked."""

    def __init__(self, empty: Sequence[KeysValues]) -> None:
        """Begin with no entries: `empty` is `[B, H, 0, D]` per layer."""
        self.lengths = [0] * len(empty[0][0])
        self.storage = tuple(empty)  # may have rows and entries to spare
        self.next = Positions(empty[0][0].device)

    @property
    def layers(self) -> tuple[KeysValues, ...]:
        """The rows in use, `[B, H, C, D]` per layer."""
        return tuple((keys[: len(self.lengths)], values[: len(self.lengths)]) for keys, values in self.storage)

    def positions(self, width: int) -> Tensor:
        """Where the next `width` entries of each row stand, `[B, width]`."""
        return self.next.after(self.lengths, width).expand(len(self.lengths), -1)

    def append(self, layers: Sequence[KeysValues], counts: Sequence[int]) -> None:
        """Add the first `counts[b]` of the new entries `[B, H, T, D]` to row b."""
        width = layers[0][0].shape[2]
        needed = max(self.lengths) + width
        places = self.positions(width)[:, None, :, None]  # [B, 1, T, 1]
        self.storage = tuple(
            (_placed(old[0], new[0], places, needed), _placed(old[1], new[1], places, needed))
            for old, new in zip(self.storage, layers, strict=True)
        )
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Keep the first `lengths[b]` entries of row b."""
        self.lengths = list(lengths)

    def select(self, rows: Sequence[int]) -> None:
        """Keep some rows, in that order."""
        self.lengths = [self.lengths[row] for row in rows]
        self.storage = tuple((keep(keys, rows, dim=0), keep(values, rows, dim=0)) for keys, values in self.storage)

    def join(self, other: "RowStates") -> None:
        """Take over the rows of another one, behind the own ones."""
        num_rows, width = len(self.lengths), max(other.lengths)
        self.storage = tuple(
            (add(keys, num_rows, new[0][:, :, :width], dim=0), add(values, num_rows, new[1][:, :, :width], dim=0))
            for (keys, values), new in zip(self.storage, other.layers, strict=True)
        )
        self.lengths = [*self.lengths, *other.lengths]

    def copy(self, rows: Sequence[int]) -> "RowStates":
        """Some rows, in memory of their own."""
        twin = RowStates([(keys[list(rows)], values[list(rows)]) for keys, values in self.layers])
        twin.lengths = [self.lengths[row] for row in rows]
        return twin

    def visible(self) -> tuple[tuple[KeysValues, ...], Tensor | None]:
        """The entries up to the longest row, and `[B, L]`, True at a row's own; None where all rows are full."""
        longest = max(self.lengths)
        layers = tuple((keys[:, :, :longest], values[:, :, :longest]) for keys, values in self.layers)
        if all(length == longest for length in self.lengths):
            return layers, None
        return layers, torch.arange(longest, device=self.next.device) < self.positions(1)


def _placed(old: Tensor, new: Tensor, places: Tensor, needed: int) -> Tensor:
    """Write `new` `[B, H, T, D]` into `old` `[B, H, C, D]` at `places` `[B, 1, T, 1]`, in place, growing it by doubling."""
    num_heads, capacity, size = old.shape[1:]
    if capacity < needed:
        old = functional.pad(old, (0, 0, 0, max(needed, 2 * capacity) - capacity))
    return old.scatter_(2, places.expand(-1, num_heads, -1, size), new)

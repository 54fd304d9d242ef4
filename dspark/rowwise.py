"""Rows in caches of their own: for models whose rows cannot share a forward where their lengths differ."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from dspark.causal_model import CausalModel
from dspark.reading import Reading


class RowwiseContext:
    """Each row by itself: for models that cannot share a forward between rows of unequal length."""

    def __init__(self, model: CausalModel, num_rows: int, *, layers: tuple[int, ...] = ()) -> None:
        self.model = model
        kind = CachedRow if model.crops else SnapshotRow if model.cache_keyword else RecomputedRow
        self.rows: list[CachedRow | SnapshotRow | RecomputedRow] = [kind(model, layers) for _ in range(num_rows)]
        self.lengths = [0] * num_rows

    def extend(self, token_ids: Tensor, counts: Sequence[int], *, last: bool = False) -> Reading:
        """See `Context.extend`."""
        read = [
            row.extend(token_ids[index : index + 1, :count], last=last) if count else None
            for index, (row, count) in enumerate(zip(self.rows, counts, strict=True))
        ]
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        logits = [None if each is None else each.logits for each in read]
        features = [None if each is None else each.features for each in read]
        width = token_ids.shape[1]
        tapped = _padded(features, width) if any(each is not None for each in features) else None
        return Reading(_padded(logits, 1 if last else width), tapped)

    def commit(self, lengths: Sequence[int]) -> None:
        """See `Context.commit`."""
        for row, length, kept in zip(self.rows, self.lengths, lengths, strict=True):
            row.commit(length - kept)
        self.lengths = list(lengths)

    def select(self, rows: Sequence[int]) -> None:
        """See `Context.select`."""
        self.rows = [self.rows[row] for row in rows]
        self.lengths = [self.lengths[row] for row in rows]

    def join(self, other: "RowwiseContext") -> None:
        """See `Context.join`."""
        self.rows = [*self.rows, *other.rows]
        self.lengths = [*self.lengths, *other.lengths]

    def copy(self, rows: Sequence[int]) -> "RowwiseContext":
        """See `Context.copy`."""
        twin = copy.copy(self)
        shared = {id(self.model): self.model}
        twin.rows = [copy.deepcopy(self.rows[row], shared) for row in rows]
        twin.lengths = [self.lengths[row] for row in rows]
        return twin


class CachedRow:
    """One row in its own cache, sliding windows included.

    A window layer may give up what `crop` would need back, and versions differ in what a second forward before `crop`
    sees; so where there is one, uncommitted tokens are cropped and read again together with the next ones. Without windows a
    row can give up what was committed long ago, too.
    """

    def __init__(self, model: CausalModel, layers: tuple[int, ...]) -> None:
        self.model = model
        self.layers = layers
        self.cache = model.new_cache()
        self.uncommitted = torch.zeros(1, 0, dtype=torch.long, device=model.device)

    def extend(self, token_ids: Tensor, *, last: bool) -> Reading:
        """Read the new tokens, `[1, T]`; with `last` only the logits of the last."""
        if not self.model.has_window:
            return _read_end(self.model, token_ids, self.cache, self.layers, token_ids.shape[1], last=last)
        if self.uncommitted.shape[1]:
            self.cache.crop(-self.uncommitted.shape[1])
        self.uncommitted = torch.cat([self.uncommitted, token_ids], 1)
        return _read_end(self.model, self.uncommitted, self.cache, self.layers, token_ids.shape[1], last=last)

    def commit(self, num_removed: int) -> None:
        """Forget the last tokens and make the others final."""
        if self.uncommitted.shape[1] or num_removed:
            self.cache.crop(-num_removed)  # 0 too: it trims window layers to the window
            self.uncommitted = self.uncommitted[:, :0]


class SnapshotRow:
    """One row in a cache that can not be cropped: a recurrent state has the rejected drafts mixed into it.

    A copy is kept from before the tokens that are not final yet. Where some of them are forgotten, the copy takes over and
    the others are read again.
    """

    def __init__(self, model: CausalModel, layers: tuple[int, ...]) -> None:
        self.model = model
        self.layers = layers
        self.cache = model.new_cache()
        self.snapshot: DynamicCache | None = None
        self.uncommitted = torch.zeros(1, 0, dtype=torch.long, device=model.device)

    def extend(self, token_ids: Tensor, *, last: bool) -> Reading:
        """Read the new tokens, `[1, T]`; with `last` only the logits of the last."""
        if self.snapshot is None:
            self.snapshot = copy.deepcopy(self.cache)
        self.uncommitted = torch.cat([self.uncommitted, token_ids], 1)
        return _read_end(self.model, token_ids, self.cache, self.layers, token_ids.shape[1], last=last)

    def commit(self, num_removed: int) -> None:
        """Forget the last tokens and make the others final."""
        if num_removed and self.snapshot is not None:
            self.cache = self.snapshot
            kept = self.uncommitted[:, : self.uncommitted.shape[1] - num_removed]
            if kept.shape[1]:
                _read_end(self.model, kept, self.cache, (), 1, last=True)
        self.snapshot = None
        self.uncommitted = self.uncommitted[:, :0]


class RecomputedRow:
    """One row without a cache: every forward reads the whole text."""

    def __init__(self, model: CausalModel, layers: tuple[int, ...]) -> None:
        self.model = model
        self.layers = layers
        self.token_ids = torch.zeros(1, 0, dtype=torch.long, device=model.device)

    def extend(self, token_ids: Tensor, *, last: bool) -> Reading:
        """Read the new tokens, `[1, T]`; with `last` only the logits of the last."""
        self.token_ids = torch.cat([self.token_ids, token_ids], 1)
        return _read_end(self.model, self.token_ids, None, self.layers, token_ids.shape[1], last=last)

    def commit(self, num_removed: int) -> None:
        """Forget the last tokens."""
        self.token_ids = self.token_ids[:, : self.token_ids.shape[1] - num_removed]


def _read_end(
    model: CausalModel,
    token_ids: Tensor,
    cache: DynamicCache | None,
    layers: tuple[int, ...],
    width: int,
    *,
    last: bool,
) -> Reading:
    """Read `[1, T]`; features of the last `width` positions, and their logits, or with `last` only those of the last."""
    num_logits = 1 if last else width
    inputs = {"logits_to_keep": num_logits} if model.keeps_logits else {}
    reading = model.read(token_ids, cache, layers=layers, **inputs)
    features = None if reading.features is None else reading.features[:, -width:]
    return Reading(reading.logits[:, -num_logits:], features)


def _padded(rows: Sequence[Tensor | None], width: int) -> Tensor:
    """Stack rows `[1, count, X]`, zeros behind each and in place of None: `[B, width, X]`."""
    empty = next(row for row in rows if row is not None)[:, :0]
    kept = [empty if row is None else row for row in rows]
    return torch.cat([functional.pad(row, (0, 0, 0, width - row.shape[1])) for row in kept])

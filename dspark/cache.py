"""What a model has read so far, per row: a batch whose rows grow and shrink by counts of their own."""

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from dspark.causal_model import CausalModel
from dspark.reading import Reading


class Context(Protocol):
    """Rows of read tokens; `lengths[b]` of them in row b."""

    lengths: list[int]

    def extend(self, token_ids: Tensor, counts: Sequence[int], *, last: bool = False) -> Reading:
        """Read the first `counts[b]` of row b's `token_ids` `[B, T]`; the rest is padding (any id of the vocabulary).

        T is the largest count. Returns logits `[B, T, V]`, or with `last` only each row's last, `[B, 1, V]`, and the features of
        all T positions where layers are tapped. Entries at padding mean nothing.
        """

    def commit(self, lengths: Sequence[int]) -> None:
        """Keep the first `lengths[b]` tokens of row b and forget the rest; what is kept can not be taken back later."""

    def select(self, rows: Sequence[int]) -> None:
        """Keep some rows, in that order."""


def open_context(model: CausalModel, num_rows: int, *, layers: tuple[int, ...] = ()) -> Context:
    """An empty context of the kind that the model supports; every forward taps the outputs of `layers`."""
    lean = model.lean.open(num_rows, cache_keyword=model.cache_keyword, taps=layers)
    if lean is not None:
        return lean
    if model.batches_ragged or (model.crops and not model.has_window and num_rows == 1):
        return BatchContext(model, num_rows, layers=layers)
    return RowwiseContext(model, num_rows, layers=layers)


class BatchContext:
    """All rows in one key-value cache, with holes.

    Every forward appends the same number of slots to all rows. `valid` `[B, L]` (on the host) says which slots hold a
    row's text; None where all do, and then no mask and no positions are passed. Padding may stay visible during its own
    forward: it stands after the row's tokens, which attend backwards only. So no query is ever without a visible key.
    """

    def __init__(self, model: CausalModel, num_rows: int, *, layers: tuple[int, ...] = ()) -> None:
        self.model = model
        self.layers = layers
        self.lengths = [0] * num_rows
        self.cache: DynamicCache = model.new_cache()
        self.num_slots = 0
        self.valid: Tensor | None = None

    def extend(self, token_ids: Tensor, counts: Sequence[int], *, last: bool = False) -> Reading:
        """See `Context.extend`."""
        num_rows, width = token_ids.shape
        inputs = {} if self.valid is None else self._mask_and_positions(self.valid, width)
        wanted = sorted({max(count, 1) - 1 for count in counts}) if last else []
        kept = last and self.model.keeps_logits
        if kept:
            at_end = wanted == [width - 1]
            inputs["logits_to_keep"] = 1 if at_end else torch.tensor(wanted, device=token_ids.device)
        reading = self.model.read(token_ids, self.cache, layers=self.layers, **inputs)
        logits = reading.logits
        if any(count != width for count in counts) or self.valid is not None:
            valid = torch.ones(num_rows, self.num_slots, dtype=torch.bool) if self.valid is None else self.valid
            fresh = torch.arange(width) < torch.tensor(counts)[:, None]
            self.valid = torch.cat([valid, fresh], 1)
        self.num_slots += width
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        if not last or logits.shape[1] == 1:
            return reading
        places = [max(count, 1) - 1 for count in counts]
        index = torch.tensor([wanted.index(place) if kept else place for place in places], device=logits.device)
        return Reading(logits[torch.arange(num_rows, device=logits.device), index].unsqueeze(1), reading.features)

    def commit(self, lengths: Sequence[int]) -> None:
        """See `Context.commit`."""
        if self.lengths == list(lengths):
            return
        self.lengths = list(lengths)
        if self.valid is None and len(set(lengths)) == 1:
            self._crop(self.lengths[0])
            return
        valid = torch.ones(len(lengths), self.num_slots, dtype=torch.bool) if self.valid is None else self.valid
        self.valid = valid & (valid.cumsum(1) <= torch.tensor(lengths)[:, None])
        self._tidy(self.valid)

    def select(self, rows: Sequence[int]) -> None:
        """See `Context.select`."""
        self.lengths = [self.lengths[row] for row in rows]
        if self.num_slots:
            self.cache.batch_select_indices(torch.tensor(rows, device=self.model.device))
        if self.valid is not None:
            self.valid = self.valid[list(rows)]
            self._tidy(self.valid)

    def copy(self) -> "BatchContext":
        """The same text in a cache of its own."""
        twin = BatchContext(self.model, len(self.lengths), layers=self.layers)
        twin.lengths, twin.num_slots, twin.valid = list(self.lengths), self.num_slots, self.valid
        twin.cache = copy.deepcopy(self.cache)
        return twin

    def _mask_and_positions(self, valid: Tensor, width: int) -> dict[str, Any]:
        device = self.model.device
        visible = torch.cat([valid, torch.ones(valid.shape[0], width, dtype=torch.bool)], 1)  # [B, L + T]
        positions = torch.tensor(self.lengths)[:, None] + torch.arange(width)  # [B, T]
        if self.model.max_positions is not None:
            positions = positions.clamp(max=self.model.max_positions - 1)  # only padding lies beyond
        return {"attention_mask": visible.long().to(device), "position_ids": positions.to(device)}

    def _tidy(self, valid: Tensor) -> None:
        """Give back slots: the common tail always; all holes when they are half of the cache, or the row is alone."""
        longest = max(self.lengths)
        used = int(valid.any(0).nonzero().max()) + 1 if longest else 0
        self._crop(used)
        self.valid = valid = valid[:, :used]
        if longest and (used > 2 * longest or (used > longest and len(self.lengths) == 1)):
            order = (~valid).byte().argsort(dim=1, stable=True)[:, :longest].to(self.model.device)  # [B, longest]
            layers: list[Any] = self.cache.layers
            for layer in layers:
                layer.keys, layer.values = (_gather_slots(states, order) for states in (layer.keys, layer.values))
            self.num_slots = longest
            self.valid = valid = torch.arange(longest) < torch.tensor(self.lengths)[:, None]
        if bool(valid.all()):
            self.valid = None

    def _crop(self, num_slots: int) -> None:
        if num_slots < self.num_slots:
            self.cache.crop(num_slots - self.num_slots)
            self.num_slots = num_slots


class RowwiseContext:
    """Each row by itself: for models that cannot share a forward between rows of unequal length."""

    def __init__(self, model: CausalModel, num_rows: int, *, layers: tuple[int, ...] = ()) -> None:
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


class CachedRow:
    """One row in its own cache, sliding windows included.

    A window layer may give up what `crop` would need back, and versions differ in what a second forward before `crop`
    sees; so uncommitted tokens are cropped and read again together with the next ones.
    """

    def __init__(self, model: CausalModel, layers: tuple[int, ...]) -> None:
        self.model = model
        self.layers = layers
        self.cache = model.new_cache()
        self.uncommitted = torch.zeros(1, 0, dtype=torch.long, device=model.device)

    def extend(self, token_ids: Tensor, *, last: bool) -> Reading:
        """Read the new tokens, `[1, T]`; with `last` only the logits of the last."""
        if self.uncommitted.shape[1]:
            self.cache.crop(-self.uncommitted.shape[1])
        self.uncommitted = torch.cat([self.uncommitted, token_ids], 1)
        return _read_end(self.model, self.uncommitted, self.cache, self.layers, token_ids.shape[1], last=last)

    def commit(self, num_removed: int) -> None:
        """Forget the last tokens and make the others final."""
        if self.uncommitted.shape[1]:
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


def _gather_slots(states: Tensor, order: Tensor) -> Tensor:
    index = order[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
    return states.gather(2, index)  # [B, H, longest, D]

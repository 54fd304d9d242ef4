"""What a model has read so far, per row: a batch whose rows grow and shrink by counts of their own."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from dspark.causal_model import CausalModel
from dspark.reading import Reading
from dspark.rowwise import RowwiseContext


class Context(Protocol):
    """Rows of read tokens; `lengths[b]` of them in row b."""

    lengths: list[int]

    def extend(self, token_ids: Tensor, counts: Sequence[int], *, last: bool = False) -> Reading:
        """Read the first `counts[b]` of row b's `token_ids` `[B, T]`; the rest is padding (any id of the vocabulary).

        T is the largest count. Returns logits `[B, T, V]`, or with `last` only each row's last, `[B, 1, V]`, and the features of
        all T positions where layers are tapped. Entries at padding mean nothing.
        """

    def commit(self, lengths: Sequence[int]) -> None:
        """Keep the first `lengths[b]` tokens of row b and forget the rest.

        What is kept can be taken back later where the model `rewinds`.
        """

    def select(self, rows: Sequence[int]) -> None:
        """Keep some rows, in that order."""

    def join(self, other: Any) -> None:
        """Take over the rows of another context of the same kind and model, behind the own ones."""

    def copy(self, rows: Sequence[int]) -> "Context":
        """Some rows, in memory of their own."""


def open_context(model: CausalModel, num_rows: int, *, layers: tuple[int, ...] = ()) -> Context:
    """An empty context of the kind that the model supports, the same for any number of rows.

    Every forward taps the outputs of `layers`.
    """
    lean = model.lean.open(num_rows, cache_keyword=model.cache_keyword, taps=layers)
    if lean is not None:
        return lean
    kind = BatchContext if model.batches_ragged else RowwiseContext
    return kind(model, num_rows, layers=layers)


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
            valid = self._valid_of(self.num_slots)
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
        valid = self._valid_of(self.num_slots)
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

    def join(self, other: "BatchContext") -> None:
        """See `Context.join`; the shorter cache gets holes at its end."""
        num_slots = max(self.num_slots, other.num_slots)
        if self.num_slots != other.num_slots or self.valid is not None or other.valid is not None:
            self.valid = torch.cat([self._valid_of(num_slots), other._valid_of(num_slots)])
        sizes = [len(self.lengths), len(other.lengths)]
        empty = [(None, None)] * max(len(self._states()), len(other._states()))
        cache = self.model.new_cache()
        for layer, (own, theirs) in enumerate(zip(self._states() or empty, other._states() or empty, strict=True)):
            pairs = zip(own, theirs, strict=True)
            keys, values = (_stacked(pair, sizes, num_slots) for pair in pairs)
            cache.update(keys, values, layer)
        self.cache, self.num_slots = cache, num_slots
        self.lengths = [*self.lengths, *other.lengths]

    def copy(self, rows: Sequence[int]) -> "BatchContext":
        """See `Context.copy`."""
        twin = BatchContext(self.model, len(rows), layers=self.layers)
        twin.lengths, twin.num_slots = [self.lengths[row] for row in rows], self.num_slots
        for layer, (keys, values) in enumerate(self._states()):
            twin.cache.update(keys[list(rows)], values[list(rows)], layer)
        if self.valid is not None:
            twin.valid = self.valid[list(rows)]
            twin._tidy(twin.valid)
        return twin

    def _states(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values `[B, H, L, D]` by layer; none before the first forward."""
        layers: list[Any] = self.cache.layers if self.num_slots else []
        return [(layer.keys, layer.values) for layer in layers]

    def _valid_of(self, num_slots: int) -> Tensor:
        valid = torch.ones(len(self.lengths), self.num_slots, dtype=torch.bool) if self.valid is None else self.valid
        return functional.pad(valid, (0, num_slots - self.num_slots))

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


def _gather_slots(states: Tensor, order: Tensor) -> Tensor:
    index = order[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
    return states.gather(2, index)  # [B, H, longest, D]


def _stacked(parts: Sequence[Tensor | None], num_rows: Sequence[int], num_slots: int) -> Tensor:
    """Stack rows `[n, H, L, D]`, zeros behind each and in place of None: `[B, H, num_slots, D]`."""
    known = next(part for part in parts if part is not None)
    _, num_heads, _, size = known.shape
    full = [
        known.new_zeros(count, num_heads, num_slots, size)
        if part is None
        else functional.pad(part, (0, 0, 0, num_slots - part.shape[2]))
        for part, count in zip(parts, num_rows, strict=True)
    ]
    return torch.cat(full)

"""What the short forward has read: every row in its own slots, so that forgetting is a smaller number."""

import copy
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from dspark.lean.forward import Block, LeanForward
from dspark.lean.recording import Outputs, Recordings, Step
from dspark.reading import Reading
from dspark.spare_rows import add, keep
from dspark.transfer import Positions, to_device

SMALLEST = 64  # slots
LARGEST_RESERVE = 1024  # slots
CHUNK = 512  # tokens
FREE_TOKENS = (8, 256)  # of a forward on a CPU and on a GPU: so many cost hardly more than one
MOST_RECORDED = (64, 4096)  # tokens of a forward that is recorded, and slots: it looks at all of them


class LeanContext:
    """A `Context` in slots: position n of a row is in slot n, so ragged rows leave no holes and a rollback moves no entry.

    Every forward is a call of the model with its forward replaced, so hooks that were registered on the model see it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        forward: LeanForward,
        num_rows: int,
        *,
        cache_keyword: str,
        taps: tuple[int, ...] = (),
    ) -> None:
        self.forward = forward
        self.cache_keyword = cache_keyword
        self.taps = taps
        self.lengths = [0] * num_rows
        self.storage = forward.new_slots(num_rows, 0)  # may have rows and slots to spare
        self.rotations = forward.rotations(0)
        self.positions = Positions(self.storage.device)
        self.recordings = Recordings(forward.recorder) if forward.recorder else None
        # A shallow copy shares weights and hooks with the model, which itself stays as it is. It does not hold on to the context,
        # so that the slots are given back as soon as nobody needs them, and not at the next garbage collection.
        self.model: Any = copy.copy(model)
        self.model.forward = weakly(self._read)

    @property
    def slots(self) -> Tensor:
        """The rows in use, `[layers, B, C, 2 H_kv, D]`."""
        return self.storage[:, : len(self.lengths)]

    def get_seq_length(self) -> int:
        """How many tokens have been read, as the library's caches are asked; of the longest row."""
        return max(self.lengths)

    def extend(self, token_ids: Tensor, counts: Sequence[int], *, last: bool = False) -> Reading:
        """See `Context.extend`."""
        self._make_room(max(self.lengths) + token_ids.shape[1])
        wanted = None
        if last and token_ids.shape[1] > 1:
            wanted = to_device(torch.tensor([max(count, 1) - 1 for count in counts]), token_ids.device)  # [B]
        reading: Reading = self.model(input_ids=token_ids, counts=counts, wanted=wanted, **{self.cache_keyword: self})
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        return reading

    def unhooked(self, token_ids: Tensor) -> Reading:
        """Read `[B, T]`, all of them text, unseen by hooks; for trying out."""
        self._make_room(max(self.lengths) + token_ids.shape[1])
        return self._read(token_ids, counts=[token_ids.shape[1]] * len(token_ids), wanted=None)

    def commit(self, lengths: Sequence[int]) -> None:
        """See `Context.commit`."""
        self.lengths = list(lengths)

    def select(self, rows: Sequence[int]) -> None:
        """See `Context.select`."""
        self.lengths = [self.lengths[row] for row in rows]
        self.storage = keep(self.storage, rows, dim=1)

    def join(self, other: "LeanContext") -> None:
        """See `Context.join`."""
        self.storage = add(self.storage, len(self.lengths), other.slots[:, :, : max(other.lengths)], dim=1)
        self.rotations = max(self.rotations, other.rotations, key=len)
        self.lengths = [*self.lengths, *other.lengths]

    def copy(self, rows: Sequence[int]) -> "LeanContext":
        """See `Context.copy`; with no slot to spare."""
        keyword, taps = self.cache_keyword, self.taps
        twin = LeanContext(self.model, self.forward, len(rows), cache_keyword=keyword, taps=taps)
        twin.lengths = [self.lengths[row] for row in rows]
        twin.storage = self.slots[:, list(rows), : max(twin.lengths)]
        twin.rotations = self.rotations[: max(twin.lengths)]
        return twin

    def _read(self, input_ids: Tensor, *, counts: Sequence[int], wanted: Tensor | None, **_: Any) -> Reading:
        """The forward of the model; its cache is this context."""
        if self.recordings and wanted is None and self._is_small(input_ids):
            positions = self.positions.after(self.lengths, input_ids.shape[1]).expand(len(input_ids), -1)
            step = fixed_step(self.forward, self.slots, self.rotations, self.taps)
            return Reading(*self.recordings.run(step, input_ids, positions, (self.storage, self.rotations)))
        # Behind an empty context no mask is needed; a mask is as long as the text, so it is made for a chunk at a time.
        width = CHUNK if any(self.lengths) else input_ids.shape[1]
        parts = input_ids.split(width, 1) if width < input_ids.shape[1] else (input_ids,)
        outputs: list[Tensor] = []
        features: list[Tensor] = []
        for place, part in enumerate(parts):
            block = self._block(part.shape[1], [count - place * width for count in counts], place * width)
            states, tapped = self.forward.read(part, block, self.slots, self.rotations, taps=self.taps)
            if wanted is None and len(parts) == 1:
                return Reading(block.spread(self.forward.logits(states)), tapped)
            outputs.append(block.spread(states))
            features += [] if tapped is None else [tapped]
        states = _joined(outputs)  # [B, T, d]
        if wanted is not None:
            states = states[torch.arange(len(wanted), device=wanted.device), wanted].unsqueeze(1)  # [B, 1, d]
        return Reading(self.forward.logits(states), _joined(features) if features else None)

    def _block(self, width: int, counts: Sequence[int], skip: int = 0) -> Block:
        """The next `width` positions of every row, behind `skip` others; the first `counts[b]` of row b are text."""
        num_rows, capacity = len(self.lengths), self.storage.shape[2]
        starts = [length + skip for length in self.lengths]
        positions = self.positions.after(starts, width)  # [B or 1, T]
        span = max(starts) + width
        causal = width == span  # of all rows: the longest is empty
        mask = None
        if not causal and (width > 1 or len(positions) > 1):
            mask = mask_of(positions, span, self.storage.dtype)
        places = places_of(positions, num_rows, capacity)
        kept = self._without_padding(counts, width)
        if kept is not None:
            positions = positions.expand(num_rows, -1).flatten()[None, kept]
            places = places.flatten()[kept]
        return Block(
            positions=positions,
            places=places.flatten(),
            span=span,
            mask=mask,
            causal=causal,
            shape=(num_rows, width),
            kept=kept,
        )

    def _without_padding(self, counts: Sequence[int], width: int) -> Tensor | None:
        """Where the first `counts[b]` of `width` tokens in each row b are in `[B * width]`; None where padding costs nothing."""
        device = self.storage.device
        num_padded = len(counts) * width
        if num_padded <= FREE_TOKENS[device.type == "cuda"] or all(count >= width for count in counts):
            return None
        places = [row * width + place for row, count in enumerate(counts) for place in range(min(count, width))]
        return to_device(torch.tensor(places, dtype=torch.long), device)

    def _is_small(self, token_ids: Tensor) -> bool:
        """Whether a forward is worth a recording."""
        most_tokens, most_slots = MOST_RECORDED
        return token_ids.numel() <= most_tokens and self.storage.shape[2] <= most_slots

    def _make_room(self, num_slots: int) -> None:
        if num_slots > self.storage.shape[2]:
            grown = max(SMALLEST, num_slots + min(num_slots, LARGEST_RESERVE))
            self.storage = functional.pad(self.storage, (0, 0, 0, 0, 0, grown - self.storage.shape[2]))
            self.rotations = self.forward.rotations(grown)


def fixed_step(forward: LeanForward, slots: Tensor, rotations: Tensor, taps: tuple[int, ...]) -> Step:
    """A forward over all slots, whatever the rows have read; what stands behind a row's text is masked, and must be finite."""

    def step(token_ids: Tensor, positions: Tensor) -> Outputs:
        num_rows, capacity = slots.shape[1:3]
        block = Block(
            positions=positions,
            places=places_of(positions, num_rows, capacity).flatten(),
            span=capacity,
            mask=mask_of(positions, capacity, slots.dtype),
            causal=False,
            shape=(num_rows, token_ids.shape[1]),
        )
        states, features = forward.read(token_ids, block, slots, rotations, taps=taps)
        return forward.logits(states), features

    return step


def mask_of(positions: Tensor, span: int, dtype: torch.dtype) -> Tensor:
    """What tokens at `positions` `[B or 1, T]` do not see of `span` slots, to be added to scores: `[B or 1, 1, T, span]`."""
    hidden = torch.arange(span, device=positions.device) > positions[:, None, :, None]
    return torch.zeros(hidden.shape, dtype=dtype, device=positions.device).masked_fill_(hidden, -torch.inf)


def places_of(positions: Tensor, num_rows: int, capacity: int) -> Tensor:
    """The slots of `positions` `[B or 1, T]`, counted through all rows: `[B, T]`."""
    if num_rows == 1:
        return positions
    return positions + torch.arange(0, num_rows * capacity, capacity, device=positions.device)[:, None]


def weakly(method: Callable[..., Reading]) -> Callable[..., Reading]:
    """A method that does not keep its object alive."""
    reference = weakref.WeakMethod(method)

    def call(**inputs: Any) -> Reading:
        found = reference()
        assert found is not None, "whoever calls it holds the object"
        return found(**inputs)

    return call


def _joined(parts: list[Tensor]) -> Tensor:
    """Parts `[B, t, X]` of one sequence."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

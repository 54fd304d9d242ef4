"""What the bets are about: emitted tokens with the law that each should have followed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]

# A law may be off by the rounding of a float32 softmax over a large vocabulary, and not by more.
SUM_TOLERANCE = 1e-4
# Small pieces stay in the processor's cache and below the size at which the allocator returns memory at once: measured
# at V = 64, 4 times faster than 2**17 and 2048.
MAX_PIECE_ELEMENTS = 2**15
MAX_PIECE_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvidence:
    """A batch of N emitted tokens in the order of emission, each with the laws known at its prefix.

    `target_probs` [N, V] is the reference law after every processor; `token_ids` [N] what was emitted; `draft_probs`
    [N, V] the draft model's law at the same prefix (None where there is no draft model). `alternatives` maps a name
    to the law [N, V] that a particular mistake would have used at that position (names:
    `verify.betting.library.ALTERNATIVES`). Each law must be known before the token at its position: the test is valid for
    no other. `draft_offsets` [N] is the offset inside the drafting round: 0 to
    num_draft_tokens - 1 for a position that had a draft, `num_draft_tokens` for the bonus position, -1 unknown or no
    round. `roles` [N] are only for the diagnosis. Laws are converted to float64 and renormalised; a law that misses 1
    by more than 1e-4, holds a negative or a NaN, and a shape or token id that does not fit raise ValueError.
    """

    target_probs: Floats
    token_ids: Ints
    draft_probs: Floats | None = None
    alternatives: Mapping[str, Floats] = field(default_factory=dict)
    draft_offsets: Ints | None = None
    num_draft_tokens: int | None = None
    roles: Sequence[str] | None = None

    def __post_init__(self) -> None:
        target_probs = _law("target_probs", self.target_probs, None)
        shape = target_probs.shape
        token_ids = np.asarray(self.token_ids, dtype=np.int64)
        _check_length("token_ids", token_ids.shape, shape[0])
        outside = (token_ids < 0) | (token_ids >= shape[1])
        if outside.any():
            raise ValueError(
                f"token id {int(token_ids[outside][0])} is outside [0, {shape[1]}), the vocabulary; check the decoder"
            )
        _set(self, "target_probs", target_probs)
        _set(self, "token_ids", token_ids)
        if self.draft_probs is not None:
            _set(self, "draft_probs", _law("draft_probs", self.draft_probs, shape))
        _set(self, "alternatives", {name: _law(name, law, shape) for name, law in self.alternatives.items()})
        if self.draft_offsets is not None:
            offsets = np.asarray(self.draft_offsets, dtype=np.int64)
            _check_length("draft_offsets", offsets.shape, shape[0])
            if self.num_draft_tokens is None:
                raise ValueError("draft_offsets need num_draft_tokens to tell the bonus position; pass both or neither")
            _set(self, "draft_offsets", offsets)
        if self.roles is not None:
            _check_length("roles", (len(self.roles),), shape[0])

    @property
    def num_tokens(self) -> int:
        """N."""
        return int(self.target_probs.shape[0])

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(self.target_probs.shape[1])

    def chunks(self, num_rows: int) -> "Iterator[TokenEvidence]":
        """Yield consecutive pieces of at most `num_rows` tokens; the arrays are views and are not checked again."""
        for start in range(0, self.num_tokens, num_rows):
            yield self._piece(slice(start, start + num_rows))

    def _piece(self, rows: slice) -> "TokenEvidence":
        piece = object.__new__(TokenEvidence)
        _set(piece, "target_probs", self.target_probs[rows])
        _set(piece, "token_ids", self.token_ids[rows])
        _set(piece, "draft_probs", None if self.draft_probs is None else self.draft_probs[rows])
        _set(piece, "alternatives", {name: law[rows] for name, law in self.alternatives.items()})
        _set(piece, "draft_offsets", None if self.draft_offsets is None else self.draft_offsets[rows])
        _set(piece, "num_draft_tokens", self.num_draft_tokens)
        _set(piece, "roles", None if self.roles is None else self.roles[rows])
        return piece


def at_tokens(values: Floats, token_ids: Ints) -> Floats:
    """The entry of each row of `values` [N, V] at that row's token, [N]."""
    found: Floats = values[np.arange(token_ids.size), token_ids]
    return found


def _set(evidence: TokenEvidence, name: str, value: object) -> None:
    object.__setattr__(evidence, name, value)


def _law(name: str, law: npt.ArrayLike, shape: tuple[int, ...] | None) -> Floats:
    array = np.asarray(law, dtype=np.float64)
    if array.ndim != 2 or (shape is not None and array.shape != shape):
        wanted = "[N, V]" if shape is None else str(list(shape))
        raise ValueError(f"{name} has shape {list(array.shape)}; it must be {wanted}; pass one law per emitted token")
    totals = array.sum(axis=1, keepdims=True)  # [N, 1]
    # `not (<=)` rather than `>`: a NaN must not slip through.
    off = ~(np.abs(totals - 1) <= SUM_TOLERANCE)
    if off.any() or (array.size and array.min() < 0):
        row = int(np.argmax(off[:, 0])) if off.any() else int(np.argmin(array.min(axis=1)))
        raise ValueError(
            f"{name}[{row}] sums to {totals[row, 0]:.6g} with minimum {array[row].min():.3g}; "
            f"a law is >= 0 and sums to 1 within {SUM_TOLERANCE:g}; pass probabilities after the softmax"
        )
    law_of_one: Floats = array / totals
    return law_of_one


def _check_length(name: str, shape: tuple[int, ...], num_tokens: int) -> None:
    if shape != (num_tokens,):
        raise ValueError(
            f"{name} has shape {list(shape)}; it must be [{num_tokens}]; pass one entry per row of target_probs"
        )

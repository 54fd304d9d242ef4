"""One call of a rejection step: its arguments, and the gate through which its answer passes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from verify.betting.evidence import Ints
from verify.intake import Malformed

Kernel: TypeAlias = Callable[..., Any]
"""`kernel(draft_token_ids, draft_probs, target_probs, draft_lengths) -> (token_ids, num_accepted)`; see `Block`."""

PADDING = -1


class KernelRaised(Exception):
    """The rejection step raised; the message names the exception."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The arguments of one call, in this order.

    Row b has `draft_lengths[b]` drafts, 0 to K; `draft_token_ids` [B, K] and `draft_probs` [B, K, V] hold zeros after them.
    `draft_probs[b, k]` is the law that draft k was drawn from; None for a whole block of one-hot drafts. `target_probs`
    [B, K + 1, V]: row k is the target's law where draft k stands, row `draft_lengths[b]` that of the bonus token.
    """

    draft_token_ids: Tensor
    draft_probs: Tensor | None
    target_probs: Tensor
    draft_lengths: Tensor

    def copy(self) -> "Block":
        """The same values in memory of their own."""
        return Block(
            draft_token_ids=self.draft_token_ids.clone(),
            draft_probs=None if self.draft_probs is None else self.draft_probs.clone(),
            target_probs=self.target_probs.clone(),
            draft_lengths=self.draft_lengths.clone(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Emission:
    """A valid answer: row b of `token_ids` [B, K + 1] holds `num_accepted[b] + 1` tokens and then -1."""

    token_ids: Ints
    num_accepted: Ints


def run_kernel(kernel: Kernel, block: Block) -> Emission:
    """Call the step on `block`; raises `KernelRaised`, or `Malformed` (value, rule, remedy) for a bad answer."""
    try:
        answer = kernel(block.draft_token_ids, block.draft_probs, block.target_probs, block.draft_lengths)
    except Exception as error:
        raise KernelRaised(f"the rejection step raised {type(error).__name__}: {error}") from error
    return admit_emission(block, answer)


def admit_emission(block: Block, answer: Any) -> Emission:
    """Turn what the step returned into an `Emission`; raises `Malformed` that names the first offending row."""
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise Malformed(
            f"the rejection step returned {type(answer).__name__}; it must return (token_ids, num_accepted)."
        )
    num_rows, width, vocab_size = block.target_probs.shape
    token_ids = _integers("token_ids", answer[0], (num_rows, width))
    num_accepted = _integers("num_accepted", answer[1], (num_rows,))
    lengths = _numpy(block.draft_lengths)
    wrong = (num_accepted < 0) | (num_accepted > lengths)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise Malformed(
            f"num_accepted[{row}] is {num_accepted[row]} where {lengths[row]} tokens were drafted; it counts accepted drafts."
        )
    emitted = np.arange(width)[None, :] <= num_accepted[:, None]  # [B, K + 1]
    foreign = emitted & ((token_ids < 0) | (token_ids >= vocab_size))
    if foreign.any():
        row, place = _first(foreign)
        raise Malformed(
            f"token_ids[{row}, {place}] is {token_ids[row, place]} where {num_accepted[row]} drafts were accepted; the first "
            f"{num_accepted[row] + 1} tokens of the row must lie in the vocabulary of {vocab_size}."
        )
    excess = ~emitted & (token_ids != PADDING)
    if excess.any():
        row, place = _first(excess)
        raise Malformed(
            f"token_ids[{row}, {place}] is {token_ids[row, place]} where {num_accepted[row]} drafts were accepted; what follows "
            f"the first {num_accepted[row] + 1} tokens of the row must be {PADDING}."
        )
    drafts = _numpy(block.draft_token_ids)
    other = (np.arange(width - 1)[None, :] < num_accepted[:, None]) & (token_ids[:, :-1] != drafts)
    if other.any():
        row, place = _first(other)
        raise Malformed(
            f"token_ids[{row}, {place}] is {token_ids[row, place]} but the draft there is {drafts[row, place]} and "
            f"num_accepted[{row}] is {num_accepted[row]}; accepted tokens are the drafts themselves."
        )
    return Emission(token_ids=token_ids, num_accepted=num_accepted)


def _first(marks: npt.NDArray[np.bool_]) -> tuple[int, int]:
    row, place = divmod(int(np.argmax(marks)), marks.shape[1])
    return row, place


def _numpy(values: Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = values.detach().cpu().numpy()
    return array


def _integers(name: str, values: Any, shape: tuple[int, ...]) -> Ints:
    if isinstance(values, Tensor):
        if values.dtype == torch.bool or values.is_floating_point() or values.is_complex():
            raise Malformed(f"{name} has dtype {values.dtype}; token ids and counts must be integers.")
        array = _numpy(values)
    else:
        try:
            array = np.asarray(values)
        except ValueError as error:
            raise Malformed(f"{name} is no array: {error}; return shape {list(shape)}.") from error
        if array.dtype.kind not in "iu":
            raise Malformed(f"{name} has dtype {array.dtype}; token ids and counts must be integers.")
    if array.shape != shape:
        raise Malformed(f"{name} has shape {list(array.shape)}; it must be {list(shape)}, whatever was accepted.")
    integers: Ints = array.astype(np.int64)
    return integers

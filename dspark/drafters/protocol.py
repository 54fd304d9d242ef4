"""The seam between the decoding loop and whatever guesses the next tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dspark.sampling import History, Processors


@dataclass(frozen=True, slots=True)
class Proposal:
    """The drafts of one round.

    `draft_token_ids` `[B, K]` and the laws that they were drawn from, `draft_probs` `[B, K, V]`, over the target's
    vocabulary; K is the largest of `draft_lengths`. Row b's drafts are its first `draft_lengths[b]`; padding after them is
    any id of the vocabulary.
    """

    draft_token_ids: Tensor
    draft_probs: Tensor
    draft_lengths: tuple[int, ...]

    @classmethod
    def empty(cls, num_rows: int, processors: Processors) -> "Proposal":
        """No draft in any row."""
        token_ids = torch.zeros(num_rows, 0, dtype=torch.long, device=processors.device)
        probs = torch.zeros(num_rows, 0, processors.vocab_size, dtype=processors.dtype, device=processors.device)
        return cls(token_ids, probs, (0,) * num_rows)


class DraftSession(Protocol):
    """A drafter's state for one batch; it dies with the batch, so a cancelled request leaves nothing behind."""

    def propose(
        self,
        *,
        token_ids: Sequence[Sequence[int]],
        num_draft_tokens: Sequence[int],
        processors: Processors,
        history: History,
        uniforms: Tensor,  # [B, K] float64
    ) -> Proposal:
        """Draft at most `num_draft_tokens[b]` tokens after the text of row b (prompt and output, ending in the anchor).

        Lossless only if each draft is drawn from the row of `draft_probs` that is returned with it, using
        `uniforms[b, k]` and nothing that depends on the outcome of the verification.
        """

    def observe(self, *, token_ids: Tensor, counts: Sequence[int]) -> None:
        """Learn what the target has read: `token_ids` `[B, T]`, the first `counts[b]` of row b are now text.

        Called after the prefill and after every round (anchor and accepted drafts). Drafters fed by the target's hidden
        states get them here, for the same positions.
        """

    def select(self, rows: Sequence[int]) -> None:
        """Keep some rows, in that order."""


class Drafter(Protocol):
    """Guesses tokens for any number of batches; holds no state of a batch itself."""

    def open(self, num_rows: int) -> DraftSession:
        """Begin a batch."""

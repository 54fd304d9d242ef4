"""The seam between the decoding loop and whatever guesses the next tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dspark.sampling import History, Processors


@dataclass(frozen=True, slots=True)
class Proposal:
    """The drafts of one round.

    `draft_token_ids` `[B, K]` and the laws that they were drawn from, `draft_probs` `[B, K, V]`, over the target's
    vocabulary; K is the largest of `draft_lengths`. Row b's drafts are its first `draft_lengths[b]`; padding after them is
    any id of the vocabulary. `confidences` `[B, K]`: how probable it is that draft k is accepted given that those before it
    are; it may depend on those, never on draft k itself. None: the drafter has no opinion.
    """

    draft_token_ids: Tensor
    draft_probs: Tensor
    draft_lengths: tuple[int, ...]
    confidences: Tensor | None = None

    @classmethod
    def empty(cls, num_rows: int, processors: Processors) -> "Proposal":
        """No draft in any row."""
        token_ids = torch.zeros(num_rows, 0, dtype=torch.long, device=processors.device)
        probs = torch.zeros(num_rows, 0, processors.vocab_size, dtype=processors.dtype, device=processors.device)
        confidences = torch.zeros(num_rows, 0, dtype=torch.float64, device=processors.device)
        return cls(token_ids, probs, (0,) * num_rows, confidences)

    def shortened(self, lengths: tuple[int, ...]) -> "Proposal":
        """Only the first `lengths[b]` drafts of row b."""
        width = max(lengths)
        confidences = None if self.confidences is None else self.confidences[:, :width]
        return Proposal(self.draft_token_ids[:, :width], self.draft_probs[:, :width], lengths, confidences)


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

    def observe(self, *, token_ids: Tensor, counts: Sequence[int], features: Tensor | None) -> None:
        """Learn what the target has read: `token_ids` `[B, T]`, the first `counts[b]` of row b are now text.

        Called after the prefill (the prompt without its last token) and after every round (anchor and accepted drafts).
        `features` `[B, T, F]` are the target's hidden states at the same positions, of the layers that the drafter taps.
        """

    def select(self, rows: Sequence[int]) -> None:
        """Keep some rows, in that order."""

    def join(self, other: Any) -> None:
        """Take over the rows of another session of the same drafter, behind the own ones."""

    def copy(self, rows: Sequence[int]) -> "DraftSession":
        """Some rows, in memory of their own."""

    def rewind(self, lengths: Sequence[int]) -> list[int]:
        """Forget of row b what did not follow from its first `lengths[b]` tokens, which the target has read.

        Returns, for each row, how many tokens it still knows: observation goes on behind them.
        """


class Drafter(Protocol):
    """Guesses tokens for any number of batches; holds no state of a batch itself.

    `feature_layers` are the target's layers whose outputs it reads: i is the output of layer i, -1 of the embeddings;
    empty for none.
    """

    @property
    def feature_layers(self) -> tuple[int, ...]: ...  # noqa: D102

    def open(self, num_rows: int) -> DraftSession:
        """Begin a batch."""

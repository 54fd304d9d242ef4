"""Prompt lookup: drafts what followed the last time that the end of the text occurred in it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dspark.drafters.protocol import DraftSession, Proposal
from dspark.sampling import History, Processors


class NgramDrafter:
    """Finds the longest suffix of the text, of `shortest` to `longest` tokens, that occurs earlier in the text.

    The most recent occurrence wins a tie. Drafts are certain of themselves: `draft_probs` are one-hot, so draft k is
    accepted with the target's probability of it. A row without a match drafts nothing.
    """

    feature_layers: tuple[int, ...] = ()

    def __init__(self, *, shortest: int = 1, longest: int = 4) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(
                f"shortest is {shortest} and longest {longest}; 1 <= shortest <= longest is needed. "
                "Try shortest=1, longest=4."
            )
        self.shortest = shortest
        self.longest = longest

    def open(self, num_rows: int) -> DraftSession:
        """Begin a batch; this drafter has no state."""
        return self

    def propose(
        self,
        *,
        token_ids: Sequence[Sequence[int]],
        num_draft_tokens: Sequence[int],
        processors: Processors,
        history: History,
        uniforms: Tensor,
    ) -> Proposal:
        """See `DraftSession.propose`; no uniform is used."""
        found = [self._continuation(ids, want) for ids, want in zip(token_ids, num_draft_tokens, strict=True)]
        lengths = tuple(len(each) for each in found)
        width = max(lengths)
        padded = [[*each, *[0] * (width - len(each))] for each in found]
        drafts = torch.tensor(padded, dtype=torch.long, device=processors.device).view(len(found), width)  # [B, K]
        probs = torch.zeros(*drafts.shape, processors.vocab_size, dtype=processors.dtype, device=processors.device)
        return Proposal(drafts, probs.scatter(-1, drafts.unsqueeze(-1), 1.0), lengths)

    def observe(self, *, token_ids: Tensor, counts: Sequence[int], features: Tensor | None) -> None:
        """Nothing to learn: the text is the state."""

    def select(self, rows: Sequence[int]) -> None:
        """Nothing to select."""

    def _continuation(self, text: Sequence[int], num_tokens: int) -> list[int]:
        best_end, best_length = 0, self.shortest - 1
        for end in range(len(text) - 1, 0, -1):  # text[:end] is compared with the end of the text
            length = 0
            while length < min(end, self.longest) and text[end - 1 - length] == text[-1 - length]:
                length += 1
            if length > best_length:
                best_end, best_length = end, length
                if length == self.longest:
                    break
        return list(text[best_end : best_end + num_tokens]) if best_end else []

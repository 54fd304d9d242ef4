"""Prompt lookup: drafts what followed the last time that the end of the text occurred in it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dspark.drafters.protocol import DraftSession, Proposal
from dspark.sampling import History, Processors
from dspark.transfer import padded


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
        """Begin a batch."""
        return NgramDraftSession(self, num_rows)


class NgramDraftSession:
    """An index of each row's text."""

    def __init__(self, drafter: NgramDrafter, num_rows: int) -> None:
        self.drafter = drafter
        self.rows = [NgramIndex(drafter.shortest, drafter.longest) for _ in range(num_rows)]

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
        found = [
            index.continuation(ids, want)
            for index, ids, want in zip(self.rows, token_ids, num_draft_tokens, strict=True)
        ]
        lengths = tuple(len(each) for each in found)
        drafts = padded(found, processors.device)  # [B, K]
        probs = torch.zeros(*drafts.shape, processors.vocab_size, dtype=processors.dtype, device=processors.device)
        return Proposal(drafts, probs.scatter(-1, drafts.unsqueeze(-1), 1.0), lengths)

    def observe(self, *, token_ids: Tensor, counts: Sequence[int], features: Tensor | None) -> None:
        """Nothing to learn: `propose` is given the text."""

    def select(self, rows: Sequence[int]) -> None:
        """See `DraftSession.select`."""
        self.rows = [self.rows[row] for row in rows]

    def join(self, other: "NgramDraftSession") -> None:
        """See `DraftSession.join`."""
        self.rows = [*self.rows, *other.rows]

    def copy(self, rows: Sequence[int]) -> "NgramDraftSession":
        """See `DraftSession.copy`."""
        return NgramDraftSession(self.drafter, len(rows))

    def rewind(self, lengths: Sequence[int]) -> list[int]:
        """See `DraftSession.rewind`; texts are indexed anew."""
        self.rows = NgramDraftSession(self.drafter, len(lengths)).rows
        return list(lengths)


class NgramIndex:
    """Where in a growing text each sequence of `shortest` to `longest` tokens has last ended."""

    def __init__(self, shortest: int, longest: int) -> None:
        self.sizes = range(longest, shortest - 1, -1)
        self.ends: dict[tuple[int, ...], int] = {}
        self.num_known = 0

    def continuation(self, text: Sequence[int], num_tokens: int) -> list[int]:
        """At most `num_tokens` tokens after the last place where the longest known suffix of the text ended before its end.

        Every text must begin with the one before.
        """
        for end in range(self.num_known + 1, len(text)):
            for size in self.sizes:
                if size <= end:
                    self.ends[tuple(text[end - size : end])] = end
        self.num_known = len(text) - 1
        suffixes = (tuple(text[-size:]) for size in self.sizes if size <= len(text))
        end = next((self.ends[each] for each in suffixes if each in self.ends), len(text))
        return list(text[end : end + num_tokens])

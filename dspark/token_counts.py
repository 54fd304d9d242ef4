"""How often each token occurs in texts that grow."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dspark.transfer import to_device


class TokenCounts:
    """Counts for a batch; texts that go on from those asked about before cost only what is new."""

    def __init__(self, *, vocab_size: int, device: torch.device, dtype: torch.dtype) -> None:
        self.vocab_size = vocab_size
        self.known: list[list[int]] = []
        self.counts = torch.zeros(0, vocab_size, dtype=dtype, device=device)

    def of(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """`[B, V]`, one text a row; a function of the texts alone, and never written to afterwards."""
        if not self._go_on(texts):
            self.known = [[] for _ in texts]
            self.counts = self.counts.new_zeros(len(texts), self.vocab_size)
        places = [
            row * self.vocab_size + token_id
            for row, (text, known) in enumerate(zip(texts, self.known, strict=True))
            for token_id in text[len(known) :]
        ]
        if places:
            index = to_device(torch.tensor(places), self.counts.device)
            ones = torch.ones_like(index, dtype=self.counts.dtype)
            self.counts = self.counts.view(-1).index_add(0, index, ones).view_as(self.counts)
            self.known = [list(text) for text in texts]
        return self.counts

    def _go_on(self, texts: Sequence[Sequence[int]]) -> bool:
        return len(texts) == len(self.known) and all(
            list(text[: len(known)]) == known for text, known in zip(texts, self.known, strict=True)
        )

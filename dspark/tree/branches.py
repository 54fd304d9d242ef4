"""The processors of one request on many branches at once, each with the history of its own branch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dspark.request import DecodingRequest
from dspark.sampling import History, Processors


class Branches:
    """Laws at the ends of branches that leave the same text; `begin` says which text."""

    def __init__(self, request: DecodingRequest, *, vocab_size: int, device: torch.device, dtype: torch.dtype) -> None:
        self.one = Processors([request], vocab_size=vocab_size, device=device, dtype=dtype)
        self.many: dict[int, Processors] = {1: self.one}
        self.histories: dict[int, History] = {}
        self.text: Sequence[int] = ()

    def begin(self, text: Sequence[int]) -> None:
        """Start a round after this text (prompt and output)."""
        self.text = text
        self.histories = {}

    def scores(self, logits: Tensor, branches: Tensor) -> Tensor:
        """Scores `[N, V]` as `Processors.scores`; `logits` `[N, V]` are of the rows after text and `branches` `[N, D]`."""
        count, depth = branches.shape
        processors = self._for(count)
        if count not in self.histories:
            self.histories[count] = processors.history([self.text] * count)
        return processors.scores(logits.unsqueeze(1), self.histories[count], branches, start=depth).squeeze(1)

    def law(self, scores: Tensor) -> Tensor:
        """The laws that are drawn from, `[N, V]`."""
        return self._for(len(scores)).law(scores.unsqueeze(1)).squeeze(1)

    def sampled_law(self, scores: Tensor) -> Tensor:
        """The laws that log-probabilities are of, `[N, V]`."""
        return self._for(len(scores)).sampled_law(scores.unsqueeze(1)).squeeze(1)

    def _for(self, count: int) -> Processors:
        if count not in self.many:
            self.many[count] = self.one.of(self.one.requests * count)
        return self.many[count]

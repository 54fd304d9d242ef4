"""What drafters share that draw one draft after the other."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dspark.transfer import to_device


class IdleRows:
    """Rows that draft fewer tokens than others: they get laws with one outcome, so that their uniforms decide nothing."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = lengths
        self.on_device = to_device(torch.tensor(lengths), device) if min(lengths) < max(lengths) else None  # [B]

    def silence(self, law: Tensor, position: int) -> Tensor:
        """Laws `[B, V]` of the drafts at one position, those of idle rows replaced."""
        if self.on_device is None or position < min(self.lengths):
            return law
        nothing = torch.zeros_like(law)
        nothing[:, 0] = 1.0
        return torch.where((self.on_device <= position)[:, None], nothing, law)

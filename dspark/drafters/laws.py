"""What drafters share that draw one draft after the other."""

from collections.abc import Sequence

import torch
from torch import Tensor


def idle_where(idle: Sequence[bool], law: Tensor) -> Tensor:
    """Laws `[B, V]`; rows that draft no more get a law with one outcome, so that their uniform decides nothing."""
    if not any(idle):
        return law
    nothing = torch.zeros_like(law)
    nothing[:, 0] = 1.0
    return torch.where(torch.tensor(idle, device=law.device)[:, None], nothing, law)

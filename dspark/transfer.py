"""What crosses from the host to the device in every round."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device; a GPU gets it from pinned memory, so that the host does not wait for the copy."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Rows of token ids on the device as `[B, T]`, zeros behind each."""
    width = max(map(len, rows))
    host = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long)
    return to_device(host, device)


class Positions:
    """Where the next tokens of rows of unequal length stand.

    The device is told how much shorter than the longest each row is, and again only when that has changed.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sent: list[int] = []
        self.offsets = torch.zeros(0, 1, dtype=torch.long, device=device)

    def after(self, lengths: Sequence[int], width: int) -> Tensor:
        """`[B, width]`, or `[1, width]` where all `lengths` are equal: positions from `lengths[b]` on."""
        longest = max(lengths)
        positions = torch.arange(longest, longest + width, device=self.device)[None]
        offsets = [length - longest for length in lengths]
        if not any(offsets):
            return positions
        if offsets != self.sent:
            self.sent, self.offsets = offsets, to_device(torch.tensor(offsets), self.device)[:, None]
        return positions + self.offsets

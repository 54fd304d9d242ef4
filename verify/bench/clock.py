"""Time as the harness sees it: the device has finished what was asked of it before the clock is read."""

import time
from typing import Protocol

import torch


class Clock(Protocol):
    """Where seconds come from; tests bring their own."""

    def now(self) -> float:
        """Seconds since some moment, after all work on the device."""


class DeviceClock:
    """`time.perf_counter`, behind a synchronisation where the device works on its own."""

    def __init__(self, device: torch.device) -> None:
        self._asynchronous = device.type == "cuda"
        self._device = device

    def now(self) -> float:
        """See `Clock`."""
        if self._asynchronous:
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

"""The most memory that a piece of work held at once."""

import ctypes
import gc
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

STATUS, REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"


def peak_bytes(work: Callable[[], object], *, device: torch.device) -> tuple[int | None, str]:
    """Bytes at the peak of `work` above what was held before it, and how that was seen; None where it cannot be.

    On the CPU it is the resident set of the process; free memory is given back to the system before, where that is possible.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, "allocated by torch on the device"
    try:
        gc.collect()
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
        REFS.write_text(RESET_PEAK)
        before = _kilobytes("VmRSS")
        work()
        return max(0, _kilobytes("VmHWM") - before) * 1024, "resident set of the process"
    except (OSError, LookupError):
        work()
        return None, "this system does not tell"


def _kilobytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise LookupError(name)
    return int(found.group(1))

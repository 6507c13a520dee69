"""Peak memory of a stretch of work."""

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch


def release() -> None:
    """Give back what an earlier run in this process has freed and the allocator still holds, so that the
    peak of the next run is its own (where the C library can: glibc). Takes some tenths of a second.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak(device: torch.device) -> None:
    """Begin a new peak: on an accelerator its allocator's, else the process' resident memory (on
    Linux; elsewhere the peak is that of the whole process).
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Largest memory held since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

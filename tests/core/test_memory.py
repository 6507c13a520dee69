"""What a stretch of work is said to have held."""

import ctypes
from pathlib import Path

import pytest
import torch

from lifelong.core import memory

CPU = torch.device("cpu")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks begin anew on Linux alone")
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc alone gives back when asked")
def test_a_peak_begins_anew_and_does_not_hold_what_was_freed_before():
    memory.release()
    memory.reset_peak(CPU)
    before = memory.peak_bytes(CPU)
    held = [bytearray(2**12) for _ in range(2**16)]  # 256 MiB in pieces
    assert memory.peak_bytes(CPU) > before + 2**27
    pinned = held[-1]  # the top of the heap stays in use, so that nothing is given back unasked
    del held
    memory.reset_peak(CPU)
    assert memory.peak_bytes(CPU) > before + 2**27, "control: freed pieces are held until they are asked for"
    memory.release()
    memory.reset_peak(CPU)
    assert memory.peak_bytes(CPU) < before + 2**26
    assert len(pinned) == 2**12

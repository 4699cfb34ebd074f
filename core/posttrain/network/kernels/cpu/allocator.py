"""Return of freed CPU memory that is allocated again all the time, as gathered layers are."""

from __future__ import annotations

import ctypes
import sys

import torch

#: glibc's number of the setting: larger blocks are mapped one by one, and unmapped when freed.
MMAP_THRESHOLD = -3


def give_memory_back(device: str | None) -> None:
    """Make the C library return each freed block of 256 KiB or more to the system at once, in a run on a CPU.

    By default it learns to keep blocks of up to 32 MB. Gathered layers come and go among the activations, and the holes
    that they leave fit nothing: a third of a run's memory was measured.
    """
    on_cpu = device == "cpu" or not torch.accelerator.is_available()
    adjust = getattr(ctypes.CDLL(None), "mallopt", None) if on_cpu and sys.platform.startswith("linux") else None
    if adjust is not None:
        adjust(MMAP_THRESHOLD, 2**18)

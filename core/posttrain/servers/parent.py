"""A process that ends with the one that started it."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys

#: Linux: number of prctl's option "signal at the parent's death".
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have Linux kill this process when its parent ends, however that one ends; elsewhere nothing happens."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):  # of a C library without it
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

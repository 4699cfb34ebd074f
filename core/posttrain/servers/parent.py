"""Ending a process together with its parent."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys

#: Linux: number of prctl's option "signal at the parent's death".
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Make Linux kill this process when its parent ends, however it ends; do nothing elsewhere."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):  # a C library without prctl
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

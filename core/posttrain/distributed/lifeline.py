"""Ranks end with the process that started them, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

from posttrain.distributed.launch import ERROR_FILE, LAUNCHED
from posttrain.runs.owner import started

#: Linux: number of prctl's option "signal at the parent's death".
PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have this process killed when its launcher ends, if one of torch's agents started it."""
    if ERROR_FILE not in os.environ:
        return
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    launcher = os.environ.get(LAUNCHED, "")
    if launcher.isdigit() and started(int(launcher)) is None:
        os._exit(1)  # it ended before this process could ask to be told


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)

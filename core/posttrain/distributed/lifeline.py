"""End of ranks with the process that started them, however that ends."""

from __future__ import annotations

import os
import sys
import threading
import time

from posttrain.distributed.launch import ERROR_FILE, LAUNCHED
from posttrain.runs.owner import started
from posttrain.servers import parent


def end_with_parent() -> None:
    """Make the system kill this process when its launcher ends, if one of torch's agents started it."""
    if ERROR_FILE not in os.environ:
        return
    if sys.platform.startswith("linux"):
        parent.end_with_parent()
    else:
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    launcher = os.environ.get(LAUNCHED, "")
    if launcher.isdigit() and started(int(launcher)) is None:
        os._exit(1)  # it ended before this process could register


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(1.0)
    os._exit(1)

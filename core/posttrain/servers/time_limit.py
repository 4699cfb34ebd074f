"""Time limit of foreign Python code in this thread, such as a chat template."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from posttrain.servers.clock import CLOCK


class OutOfTime(Exception):
    """The time limit is exceeded."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in this thread once the block has run for ``seconds``, between two steps of the interpreter.

    Code in C is not interrupted, but what follows it is.
    """
    thread = ctypes.c_ulong(threading.get_ident())
    lock = threading.Lock()
    over: list[bool] = []

    def ring() -> None:
        with lock:
            if not over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(OutOfTime))

    alarm = CLOCK.after(seconds, ring)
    try:
        yield
    finally:
        with lock:
            over.append(True)
        alarm.cancel()

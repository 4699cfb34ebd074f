"""Timers that share one thread: setting and cancelling one costs microseconds."""

from __future__ import annotations

import heapq
import itertools
import math
import os
import threading
import time
from collections.abc import Callable


class Alarm:
    """A scheduled call."""

    def __init__(self, action: Callable[[], None]):
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Cancel the call."""
        self.action = None


class Clock:
    """Calls actions at their times; each must be short."""

    def __init__(self) -> None:
        self.process = 0

    def after(self, seconds: float, action: Callable[[], None]) -> Alarm:
        """Call ``action`` in ``seconds``, unless it is cancelled."""
        if self.process != os.getpid():  # a forked child has no threads of its parent
            self._start()
        alarm, when = Alarm(action), time.monotonic() + seconds
        with self.changed:
            self._forget_cancelled()
            heapq.heappush(self.coming, (when, next(self.numbers), alarm))
            if when < self.wakes:  # waking the thread costs more than everything else here
                self.changed.notify()
        return alarm

    def _start(self) -> None:
        self.process = os.getpid()
        self.changed = threading.Condition()
        self.coming: list[tuple[float, int, Alarm]] = []
        self.numbers = itertools.count()
        self.wakes = math.inf
        threading.Thread(target=self._run, daemon=True, name="posttrain-clock").start()

    def _forget_cancelled(self) -> None:
        while self.coming and self.coming[0][2].action is None:
            heapq.heappop(self.coming)

    def _run(self) -> None:
        while True:
            with self.changed:
                self._forget_cancelled()
                self.wakes = self.coming[0][0] if self.coming else math.inf
                wait = self.wakes - time.monotonic()
                if wait > 0:
                    self.changed.wait(None if wait == math.inf else wait)
                    continue
                action = heapq.heappop(self.coming)[2].action
            if action is not None:
                action()


CLOCK = Clock()

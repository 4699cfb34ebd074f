"""Requests to a run between two steps: to stop, by a signal or ``posttrain stop``; to save, by time or on request."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from posttrain.runs.control import CHECKPOINT, STOP, take_wishes

if TYPE_CHECKING:
    from posttrain.runs.directory import RunDirectory
    from posttrain.training.interrupt import Interrupt
    from posttrain.training.strategy import Strategy

#: Saving by time takes at most one part in this many of a run's time, whatever the interval.
WORTH = 20


@dataclass
class SaveClock:
    """Schedule of checkpoints by time: one every ``seconds``, fewer where writing one takes long."""

    seconds: float
    last: float = field(default_factory=time.monotonic)
    cost: float = 0.0
    """Seconds that writing the last checkpoint took."""

    @classmethod
    def of(cls, minutes: float | None) -> SaveClock:
        """Start a clock; None and 0 never save."""
        return cls(minutes * 60 if minutes else math.inf)

    def is_due(self) -> bool:
        """Tell whether enough time has passed since the last checkpoint."""
        return time.monotonic() - self.last >= max(self.seconds, WORTH * self.cost)

    def saved(self, begun: float) -> None:
        """Record that a checkpoint begun at time ``begun`` is written."""
        self.last = time.monotonic()
        self.cost = self.last - begun


@dataclass(frozen=True)
class Asked:
    """Requests to a run, the same on every rank."""

    stop: bool
    save: bool


def ask_around(directory: RunDirectory, interrupt: Interrupt, strategy: Strategy, clock: SaveClock) -> Asked:
    """Collect the signals of all ranks, and the requests in the folder and the time that rank 0 sees."""
    wishes: set[str] = set()
    if directory.writes:
        wishes = take_wishes(directory.path)
    if STOP in wishes and not interrupt.signal:
        interrupt.signal = "posttrain stop"
    saves = CHECKPOINT in wishes or (directory.writes and clock.is_due())
    heard = strategy.everyone((bool(interrupt.signal), saves))
    return Asked(any(stop for stop, _ in heard), any(save for _, save in heard))

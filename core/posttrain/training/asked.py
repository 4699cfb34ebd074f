"""What a run is asked between two steps: to stop, by a signal or ``posttrain stop``; to save, by a clock or a wish."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from posttrain.runs.control import CHECKPOINT, STOP, take_wishes

if TYPE_CHECKING:
    from posttrain.training.run import Run

#: Saving by the clock takes at most one part in this many of a run's time, whatever the interval.
WORTH = 20


@dataclass
class SaveClock:
    """Tells when a checkpoint is due by time. ``seconds`` lie between two, more where one takes long to write."""

    seconds: float
    last: float = field(default_factory=time.monotonic)
    cost: float = 0.0
    """Seconds that the last checkpoint took."""

    @classmethod
    def of(cls, minutes: float | None) -> SaveClock:
        """Start a clock; None and 0 never save."""
        return cls(minutes * 60 if minutes else math.inf)

    def is_due(self) -> bool:
        """Tell whether enough time has passed since the last checkpoint."""
        return time.monotonic() - self.last >= max(self.seconds, WORTH * self.cost)

    def saved(self, begun: float) -> None:
        """A checkpoint that was begun at ``begun`` is written."""
        self.last = time.monotonic()
        self.cost = self.last - begun


@dataclass(frozen=True)
class Asked:
    """What every rank has heard alike."""

    stop: bool
    save: bool


def ask_around(run: Run, clock: SaveClock) -> Asked:
    """Collect signals of all ranks, and what the first one finds in the folder and on the clock."""
    wishes: set[str] = set()
    if run.outputs.directory.writes:
        wishes = take_wishes(run.path)
    if STOP in wishes and not run.interrupt.signal:
        run.interrupt.signal = "posttrain stop"
    saves = CHECKPOINT in wishes or (run.outputs.directory.writes and clock.is_due())
    heard = run.compute.strategy.everyone((bool(run.interrupt.signal), saves))
    return Asked(any(stop for stop, _ in heard), any(save for _, save in heard))

"""What a program in the sandbox may use, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.errors import SettingsError


@dataclass(frozen=True)
class Limits:
    """Bounds of one program. The processes that it starts share the time and the disk, and each has the memory."""

    seconds: float = 10.0
    """Seconds until it is killed with all that it started."""
    memory_mb: int = 512
    """Address space of each process in MiB."""
    processes: int = 16
    """Processes and threads at the same time."""
    output_bytes: int = 1 << 20
    """Bytes that it may write to its output and to its error output together; one byte more ends it."""
    disk_mb: int = 64
    """MiB in its folder, which is in memory and gone afterwards."""

    def check(self) -> None:
        """Raise SettingsError for bounds within which no Python can start."""
        if not 0 < self.seconds <= 86400:
            raise SettingsError(f"sandbox: seconds is {self.seconds:g}, expected a number above 0 and up to 86400.")
        lowest = {"memory_mb": 64, "processes": 4, "output_bytes": 1, "disk_mb": 1}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise SettingsError(f"sandbox: {name} is {getattr(self, name)}, expected {least} or more.")


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    end: Literal["exited", "time", "output"]
    """By itself, because its time was over, or because it wrote too much."""
    code: int
    """Its exit code; minus the number of the signal that ended it."""
    output: str
    errors: str
    """What it wrote to its error output."""

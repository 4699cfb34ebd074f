"""Limits of a program in the sandbox, and its outcome."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.errors import SettingsError


@dataclass(frozen=True)
class Limits:
    """Limits of one program. Its processes share the time, the disk and the memory."""

    seconds: float = 10.0
    """Seconds until it is killed with all its processes."""
    memory_mb: int = 512
    """MiB of address space of each process, and of memory of all of them together."""
    processes: int = 16
    """Processes and threads at the same time."""
    output_bytes: int = 1 << 20
    """Bytes of its output and its error output together; one byte more ends it."""
    disk_mb: int = 64
    """MiB in its folder, which is in memory and deleted afterwards."""

    def check(self) -> None:
        """Raise SettingsError for limits within which no Python can start."""
        if not 0 < self.seconds <= 86400:
            raise SettingsError(f"sandbox: seconds is {self.seconds:g}, expected a number above 0 and up to 86400.")
        lowest = {"memory_mb": 64, "processes": 4, "output_bytes": 1, "disk_mb": 1}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise SettingsError(f"sandbox: {name} is {getattr(self, name)}, expected {least} or more.")


@dataclass(frozen=True)
class Outcome:
    """End of a program."""

    end: Literal["exited", "time", "output", "memory"]
    """By itself, by its time limit, its output limit, or the memory of all its processes."""
    code: int
    """Exit code; minus the number of the signal that ended it."""
    output: str
    errors: str
    """Content of its error output."""

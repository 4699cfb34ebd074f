"""Limit of the memory of all processes of a program together: a control group of the kernel, or a watch from outside.

prlimit bounds each process alone, so a program that forks could take a multiple of its limit. Where systemd starts
programs in a control group of their own (``systemd-run --scope``), the kernel ends the whole group at the limit. Where
it does not, a thread of the run sums what the processes occupy, some forty times a second, and kills them above it.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Literal

import psutil

Limiter = Literal["cgroup", "watch"]
#: What each way is, as ``posttrain doctor`` says it.
SHOWN = {
    "cgroup": "a control group of systemd, for all processes of a program together",
    "watch": "a watch over the sum of a program's processes (no control group of systemd is to be had here)",
}
#: Seconds between two looks, and the share of a core that looking may take at most.
_PERIOD, _SHARE = 0.025, 0.2


def limiters() -> list[Limiter]:
    """List the ways that this machine may have, the better one first; a trial decides (``execute.ready``)."""
    return ["cgroup", "watch"] if shutil.which("systemd-run") else ["watch"]


def in_cgroup(words: list[str], memory_mb: int) -> list[str]:
    """Build the command that runs ``words`` in a control group that is killed as a whole above ``memory_mb`` MiB."""
    return [
        *("systemd-run", "--system" if os.geteuid() == 0 else "--user", "--scope", "--quiet", "--collect"),
        *("-p", f"MemoryMax={memory_mb}M", "-p", "MemorySwapMax=0", "-p", "OOMPolicy=kill", "--", *words),
    ]


class MemoryWatch:
    """Kills programs whose processes together occupy more than their limit. One thread, only while a program runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[int, tuple[int, Callable[[], None]]] = {}
        self._thread: threading.Thread | None = None

    def add(self, pid: int, memory_mb: int, kill: Callable[[], None]) -> None:
        """Watch the process ``pid`` and its descendants; ``kill`` is called once, when they exceed the limit."""
        with self._lock:
            self._watched[pid] = (memory_mb << 20, kill)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sandbox-memory", daemon=True)
                self._thread.start()

    def remove(self, pid: int) -> None:
        """Watch a process no longer."""
        with self._lock:
            self._watched.pop(pid, None)

    def _run(self) -> None:
        while True:
            begun = time.monotonic()
            with self._lock:
                watched = dict(self._watched)
                if not watched:
                    self._thread = None
                    return
            for pid, processes in _families(watched).items():
                limit, kill = watched[pid]
                if exceeds(processes, limit):
                    self.remove(pid)
                    kill()
            took = time.monotonic() - begun
            time.sleep(max(_PERIOD, took * (1 / _SHARE - 1)))


#: The watch over all programs of this process.
WATCH = MemoryWatch()


def _families(roots: Iterable[int]) -> dict[int, list[psutil.Process]]:
    """Return the running processes below each root, found in one pass over those of the machine."""
    children = defaultdict(list)
    for process in psutil.process_iter(["ppid"]):
        children[process.info["ppid"]].append(process)
    found = {}
    for root in roots:
        below = list(children[root])
        for process in below:  # grows on the way
            below += children[process.pid]
        found[root] = below
    return found


def exceeds(processes: list[psutil.Process], limit: int) -> bool:
    """Return whether processes together occupy more than ``limit`` bytes of memory.

    Pages that processes share, as after a fork, count once (Linux's proportional set size). That figure takes long, so
    it is asked for only where the sum of resident sizes, which is never smaller, is above the limit.
    """
    return _sum(processes, _resident) > limit and _sum(processes, _proportional) > limit


def _sum(processes: list[psutil.Process], size: Callable[[psutil.Process], int]) -> int:
    total = 0
    for process in processes:
        try:
            total += size(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue  # it has ended
    return total


def _resident(process: psutil.Process) -> int:
    return int(process.memory_info().rss)


def _proportional(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.AccessDenied:
        return _resident(process)

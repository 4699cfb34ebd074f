"""Limit of the memory that a block of code may take in this process."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def memory_limit(more: int, facts: Path = Path("/proc/self/statm")) -> Iterator[None]:
    """Let allocations fail with MemoryError inside the block once the process has ``more`` bytes beyond those of now.

    The limit is of address space and holds for all threads. Elsewhere than on Linux there is none.
    """
    if sys.platform != "linux" or not facts.is_file():
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    wanted = int(facts.read_text().split()[0]) * resource.getpagesize() + more
    if before[0] != resource.RLIM_INFINITY:
        wanted = min(wanted, before[0])
    resource.setrlimit(resource.RLIMIT_AS, (wanted, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, before)

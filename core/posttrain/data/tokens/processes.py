"""The same function over parts of a dataset, in several processes at once, with the results in order."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

from posttrain.errors import RunFailed
from posttrain.servers.parent import end_with_parent

T = TypeVar("T")
#: The function that this process calls, and what every call of it is given first.
_work: Callable[[range], Any]


def usual_processes() -> int:
    """Return how many processes pay: one a processor that this process may use; one where processes cannot be forked.

    Ranks of a distributed run share the processors of their machine.
    """
    if not sys.platform.startswith("linux"):
        return 1
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def over_parts(work: Callable[[range], T], parts: list[range], processes: int) -> Iterator[T]:
    """Yield ``work(part)`` of each part, in order, made by as many processes: forks, which share what is in memory.

    An exception of a part is raised in its turn. Raises RunFailed where a process ends by itself.
    """
    if processes == 1 or len(parts) == 1:
        yield from map(work, parts)
        return
    with _no_tokenizer_threads():
        pool = ProcessPoolExecutor(
            min(processes, len(parts)), get_context("fork"), initializer=_begin, initargs=(work,)
        )
        results = pool.map(_call, parts)  # the processes begin here
    try:
        yield from results
    except BrokenProcessPool:
        raise RunFailed(
            f"One of {processes} processes that turn rows into tokens was ended, most likely for want of memory. "
            "Use fewer: --data-processes 1"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(work: Callable[[range], Any]) -> None:
    global _work  # a fork's own
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends its pool
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _work = work


def _call(part: range) -> Any:
    return _work(part)


@contextmanager
def _no_tokenizer_threads() -> Iterator[None]:
    """Have forks made in this block tokenise with one thread each; the library would warn of every one of them."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before

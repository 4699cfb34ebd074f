"""Thread pool for calls that may never return: unlike the library's, it lets the process end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class DaemonPool:
    """At most ``workers`` threads, started on demand."""

    def __init__(self, workers: int, name: str):
        self._workers, self._name = workers, name
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None]
        self._tasks = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads = 0

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run ``call`` with ``arguments`` in a thread."""
        future: Future[Any] = Future()
        self._tasks.put((future, call, arguments))
        if not self._idle.acquire(blocking=False) and self._threads < self._workers:
            self._threads += 1
            threading.Thread(target=self._work, daemon=True, name=f"{self._name}_{self._threads}").start()
        return future

    def shutdown(self) -> None:
        """Cancel the calls that have not started; each thread ends after its current call."""
        while True:
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                break
            if task is not None:
                task[0].cancel()
        for _ in range(self._threads):
            self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, call, arguments = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call(*arguments))
                except BaseException as error:
                    future.set_exception(error)
            del task, future, call, arguments  # nothing that a call holds stays referenced until the next one
            self._idle.release()

"""Guard around a reward: it can neither end, nor fork, nor block, nor change the training process.

Changes of a reward to the state of the process (settings of torch, random states, folder, environment, streams, signal
handlers) are undone when it returns; what it set in the environment is restored for its next call. Each call gets
newly seeded generators, from the run's. Rewards of several threads at once count as one.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any, TypeVar

from posttrain.rewards.process import Own, ProcessState
from posttrain.servers.clock import CLOCK

#: Seconds for one call. Below the 30 minutes after which other ranks stop waiting for this one.
LIMIT = 1200.0
#: Seconds after the limit in which a reward may still return, before the process is ended.
GRACE = 20.0

#: Seconds until a reward that caught the interruption is interrupted again.
AGAIN = 1.0

T = TypeVar("T")


class Ended(BaseException):
    """A reward called a function that ends a process; the text is the call."""


class TimedOut(BaseException):
    """A reward did not return in time."""


class Broken(Exception):
    """A guarded call raised ``error``; ``frames`` is the call stack, the innermost last."""

    def __init__(self, error: BaseException, frames: list[tuple[FrameType, int]]):
        super().__init__(str(type(error).__name__))
        self.error = error
        self.frames = [(frame, line) for frame, line in frames if frame.f_code.co_filename != __file__]


def broken(error: BaseException) -> Broken:
    """Wrap a caught error with its call stack."""
    return Broken(error, list(traceback.walk_tb(error.__traceback__)))


def guarded(call: Callable[[], T], what: str, limit: float | None = LIMIT, own: Own | None = None) -> T:
    """Run ``call``, user code named ``what``, and return its result; ``limit`` None for no time limit.

    Raises Broken for every error of it, and for what would have ended the process; an interrupt from outside passes
    through. Where the limit cannot interrupt it, the process ends with code 1 and reports where it hangs.
    """
    process = os.getpid()
    with _shared.entered(own or Own(), limit, what):
        try:
            try:
                if threading.current_thread() is threading.main_thread():
                    with nullcontext() if limit is None else _alarm(limit):
                        result = call()
                else:
                    result = in_thread(call, limit)
            finally:
                if os.getpid() != process:  # a forked child returned here: it must not train too
                    _EXIT(1 if sys.exc_info()[0] else 0)
        except Broken as error:
            raised: BaseException = error
        except BaseException as error:
            if _shared.signalled and not isinstance(error, Exception | TimedOut | Ended):
                raise
            raised = broken(error)
        else:
            return result
    raise raised


def in_thread(call: Callable[[], T], limit: float | None) -> T:
    """Run ``call`` in a separate thread and return its result; the thread is abandoned after the limit."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        _shared.threads.add(threading.get_ident())
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)
        finally:
            _shared.threads.discard(threading.get_ident())

    process = os.getpid()
    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(limit)
    if os.getpid() != process:
        _EXIT(0)
    if results:
        return results[0]
    if errors:
        raise errors[0]
    frame = sys._current_frames().get(thread.ident or 0)
    found = list(traceback.walk_stack(frame))[::-1] if frame else []
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(TimedOut))
    raise Broken(TimedOut(), found)


@contextmanager
def _alarm(limit: float) -> Iterator[None]:
    """Raise TimedOut in the main thread after ``limit`` seconds, and again every second until it has an effect.

    A thread interrupts it where it waits. Code that holds the interpreter, such as a regular expression, lets no thread
    run; a timer of processor seconds interrupts that. Not the usual timer: rewards use it themselves.
    """
    due = time.monotonic() + limit
    done = threading.Event()

    def ring(*_: Any) -> None:
        nonlocal due
        if done.is_set():
            return
        left = due - time.monotonic()
        if left > 0.01:
            signal.setitimer(signal.ITIMER_VIRTUAL, left)
            return
        # The thread and the timer are due at the same moment where a reward computes: the second would hide the first.
        due = time.monotonic() + AGAIN
        signal.setitimer(signal.ITIMER_VIRTUAL, AGAIN)
        raise TimedOut

    def wake() -> None:
        if not done.is_set():
            CLOCK.after(AGAIN + 0.1, wake)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGVTALRM)

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    alarm = CLOCK.after(limit, wake)
    try:
        yield
    finally:
        done.set()
        alarm.cancel()
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, signal.SIG_IGN)  # a pending one must not end the process
        if before is not signal.SIG_DFL:
            signal.signal(signal.SIGVTALRM, before)


class _Shared:
    """State shared by all guarded calls of the process; the first call saves it, the last one to end restores it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = 0
        self.process = 0
        self.threads: set[int] = set()
        self.older: set[int] = set()
        self.signalled = False
        self.state: ProcessState | None = None

    @contextmanager
    def entered(self, own: Own, limit: float | None, what: str) -> Iterator[None]:
        """Register the calling thread as one that runs a reward."""
        thread = threading.get_ident()
        nested = thread in self.threads
        watch = None if limit is None else _Watch(what, limit + GRACE)
        with self.lock:
            if self.running == 0:
                self._begin(own)
            self.running += 1
            self.threads.add(thread)
        try:
            yield
        finally:
            if watch is not None:
                watch.over()
            with self.lock:
                self.running -= 1
                if not nested:
                    self.threads.discard(thread)
                if self.running == 0:
                    self._end(own)

    def _begin(self, own: Own) -> None:
        self.process, self.signalled = os.getpid(), False
        self.older = {known.ident or 0 for known in threading.enumerate()}
        self.state = ProcessState(self._note_signal)
        own.enter()
        for name, (_, refusing) in _ENDS.items():
            setattr(os, name, refusing)

    def _end(self, own: Own) -> None:
        for name, (real, _) in _ENDS.items():
            setattr(os, name, real)
        own.leave(self.state.environment if self.state else {})
        if self.state is not None:
            self.state.restore()

    def _note_signal(self) -> None:
        self.signalled = True

    def is_reward(self) -> bool:
        """Whether the calling thread is a reward's: it runs one, or was started while one ran."""
        thread = threading.get_ident()
        mine = thread in self.threads or thread not in self.older
        return bool(self.running) and self.process == os.getpid() and mine and not self.signalled


class _Watch:
    """Ends the process where neither signal nor exception ends a reward: code in C, or code that catches everything."""

    def __init__(self, what: str, limit: float):
        self.text = f"{what} has not returned after {limit:g} seconds and cannot be interrupted; the process ends.\n"
        self.alarm = CLOCK.after(limit, self._end)
        # No Python runs while code in C holds the interpreter; this C thread still runs and shows where it hangs.
        faulthandler.dump_traceback_later(limit + 1.0, file=2, exit=True)

    def over(self) -> None:
        """Cancel the watch: the call has returned."""
        self.alarm.cancel()
        if _shared.running <= 1:
            faulthandler.cancel_dump_traceback_later()

    def _end(self) -> None:
        os.write(2, self.text.encode())
        faulthandler.dump_traceback(file=2)
        _EXIT(1)


def _refusing(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def ends(*arguments: Any, **named: Any) -> Any:
        if _shared.is_reward():
            shown = ", ".join(repr(argument)[:60] for argument in [*arguments, *named.values()])
            raise Ended(f"called os.{name}({shown})")
        return real(*arguments, **named)

    return ends


_shared = _Shared()
_EXIT = os._exit
#: Functions that end the process past every exception handler: the originals, and their replacements in rewards.
_ENDS = {
    name: (getattr(os, name), _refusing(name, getattr(os, name))) for name in ("_exit", "execv", "execve", "abort")
}

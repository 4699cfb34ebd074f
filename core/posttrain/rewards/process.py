"""State of the process that any code in it can change: saved, compared and restored."""

from __future__ import annotations

import gc
import locale
import os
import random
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

Pair = tuple[Callable[[], Any], Callable[[Any], Any]]
#: All but the real-time ones, which nothing here uses, and the one of the time limit.
_SIGNALS = sorted(number for number in signal.valid_signals() if number < 32 and number != signal.SIGVTALRM)


class Own:
    """State that one reward keeps from call to call: its changes of the environment, such as keys."""

    def __init__(self) -> None:
        self.environment: dict[str, str | None] = {}

    def enter(self) -> None:
        """Restore what the last call left."""
        _change_environment(self.environment)

    def leave(self, environment: dict[str, str]) -> None:
        """Keep what differs from the run's ``environment``."""
        now = dict(os.environ)
        if now != environment or self.environment:
            names = now.keys() | environment
            self.environment = {name: now.get(name) for name in names if now.get(name) != environment.get(name)}


class _Everybody(Own):
    """State of imported code: its changes of the environment stay, since libraries that it loads read them later."""

    def leave(self, environment: dict[str, str]) -> None:
        """Apply the changes to the run's environment too."""
        environment.clear()
        environment.update(os.environ)


EVERYBODY = _Everybody()


class ProcessState:
    """The state at one moment. ``note_signal`` is called for every signal that reaches a handler from then on."""

    def __init__(self, note_signal: Callable[[], None]):
        self.environment = dict(os.environ)
        seed = random.getrandbits(32)  # one draw a call, whatever the reward draws; checkpoints save this state
        self._random = [(put, get()) for get, put, _ in _random()]
        for _, _, begin in _random():
            begin(seed)
        self._settings = [(get, put, get()) for get, put in _settings()]
        self._streams = _Streams()
        self._signals = _Signals(note_signal)

    def restore(self) -> None:
        """Restore everything that changed."""
        self._signals.restore()
        self._streams.restore()
        now = dict(os.environ)
        if now != self.environment:
            _change_environment({name: self.environment.get(name) for name in now.keys() | self.environment})
        for put, state in self._random:
            put(state)
        for get, put, value in self._settings:
            if _read(get) != value:
                put(value)


def _read(get: Callable[[], Any]) -> Any:
    try:
        return get()
    except OSError:  # the current folder was deleted
        return None


def _change_environment(changes: dict[str, str | None]) -> None:
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        elif os.environ.get(name) != value:
            os.environ[name] = value


def _random() -> list[tuple[Callable[[], Any], Callable[[Any], Any], Callable[[int], Any]]]:
    """Return for every shared generator the functions that read its state, set it, and seed it."""
    found: list[Any] = [(random.getstate, random.setstate, random.seed)]
    if (numpy := sys.modules.get("numpy")) is not None:
        found.append((numpy.random.get_state, numpy.random.set_state, numpy.random.seed))
    if (torch := sys.modules.get("torch")) is not None:
        found.append((torch.get_rng_state, torch.set_rng_state, torch.default_generator.manual_seed))
        if torch.cuda.is_initialized():
            cuda = torch.cuda
            found.append((cuda.get_rng_state_all, cuda.set_rng_state_all, cuda.manual_seed_all))
    return found


def _settings() -> list[Pair]:
    pairs: list[Pair] = [
        (os.getcwd, os.chdir),
        (_umask, os.umask),
        (lambda: locale.setlocale(locale.LC_ALL), lambda name: locale.setlocale(locale.LC_ALL, name)),
        (lambda: list(warnings.filters), _set_filters),
        (lambda: warnings.showwarning, lambda shown: setattr(warnings, "showwarning", shown)),
        (sys.getrecursionlimit, sys.setrecursionlimit),
        (socket.getdefaulttimeout, socket.setdefaulttimeout),
        (gc.isenabled, lambda enabled: gc.enable() if enabled else gc.disable()),
    ]
    torch = sys.modules.get("torch")
    if torch is None:
        return pairs
    return [
        *pairs,
        (torch.is_grad_enabled, torch._C._set_grad_enabled),
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_default_device, _set_default_device),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    ]


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _set_filters(filters: list[Any]) -> None:
    warnings.resetwarnings()  # also informs warnings of the change
    warnings.filters.extend(filters)  # type: ignore[attr-defined]


def _set_default_device(device: Any) -> None:
    import torch

    # None rather than cpu, which would slow down every later call of torch.
    torch.set_default_device(None if device == torch.device("cpu") else device)


class _Streams:
    """The standard streams: the objects in ``sys``, and the files behind them."""

    def __init__(self) -> None:
        self.objects = {name: getattr(sys, name) for name in ("stdin", "stdout", "stderr")}
        self.spare: dict[int, int] = {}
        for number in (0, 1, 2):
            try:
                self.spare[number] = os.dup(number)
            except OSError:  # closed from the start, as under a service manager
                continue

    def restore(self) -> None:
        """Reopen closed streams, and restore replaced ones."""
        for number, spare in self.spare.items():
            if _file(number) != _file(spare):
                os.dup2(spare, number)
            os.close(spare)
        for number, (name, stream) in enumerate(self.objects.items()):
            if stream is not None and getattr(stream, "closed", False) and number in self.spare:
                mode = "r" if number == 0 else "w"
                stream = os.fdopen(number, mode, encoding=stream.encoding, errors=stream.errors, closefd=False)
                setattr(sys, f"__{name}__", stream)
            setattr(sys, name, stream)


def _file(number: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(number)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class _Signals:
    """The handlers of all signals and the timer; only the main thread can change them."""

    def __init__(self, note: Callable[[], None]):
        self.handlers: dict[int, Any] = {}
        self.placed: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return
        self.timer, self.noted = signal.getitimer(signal.ITIMER_REAL), time.monotonic()
        for number in _SIGNALS:
            handler = self.handlers[number] = self.placed[number] = signal.getsignal(number)
            if callable(handler):
                self.placed[number] = _noting(handler, note)
                signal.signal(number, self.placed[number])

    def restore(self) -> None:
        """Restore the handlers, and the timer with its remaining time."""
        if not self.handlers:
            return
        left, again = self.timer
        if left:
            left = max(left - (time.monotonic() - self.noted), 0.001)
        if abs(signal.getitimer(signal.ITIMER_REAL)[0] - left) > 0.1:
            signal.setitimer(signal.ITIMER_REAL, left, again)
        for number, handler in self.handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _noting(handler: Callable[..., Any], note: Callable[[], None]) -> Callable[..., Any]:
    def told(number: int, frame: Any) -> Any:
        note()
        return handler(number, frame)

    return told

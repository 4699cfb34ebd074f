"""Foreign code in separate processes: one process loads it once, and is forked for each use.

A hanging fork is killed, and one that dies ends no other. Messages are JSON in both directions.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

from posttrain import errors
from posttrain.errors import PosttrainError, RunFailed
from posttrain.servers.parent import end_with_parent

#: A function that the loading process calls with the payload; returns facts, and a function that makes, in a forked
#: process, the function that answers messages.
Loader = Callable[[Any], tuple[Any, Callable[[], Callable[[Any], Any]]]]
_PART = 1 << 16
#: Time limit of loading in seconds; it includes reading models of rewards.
LOADING = 600.0


class ProcessLost(Exception):
    """The process has ended without an answer; the text says how."""


class Forks:
    """A process that has called ``target`` (``module:function``, a Loader) with ``payload``. Raises its error."""

    def __init__(self, target: str, payload: Any):
        self._lock = threading.Lock()
        self._line, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main()", str(theirs.fileno()), target],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # a fork has no threads of its parent
        )
        theirs.close()
        self._finish = weakref.finalize(self, _end, self._line, self._process)
        try:
            self.facts = Child(self._line, self._process.pid).ask(payload, LOADING)
            self._line.settimeout(None)
        except BaseException:
            self.close()
            raise

    def child(self) -> Child:
        """Fork a process in which the code is loaded. Raises ProcessLost."""
        ours, theirs = socket.socketpair()
        try:
            with self._lock:
                socket.send_fds(self._line, [b"f"], [theirs.fileno()])
                pid = int.from_bytes(_exactly(self._line, 8), "big")
        except (OSError, ProcessLost) as error:
            ours.close()
            raise ProcessLost(f"the process that loaded it has ended ({error})") from None
        finally:
            theirs.close()
        return Child(ours, pid)

    def close(self) -> None:
        """End the process and all its forks."""
        self._finish()


def _end(line: socket.socket, process: subprocess.Popen[bytes]) -> None:
    line.close()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Child:
    """Handle of a process that answers messages."""

    def __init__(self, line: socket.socket, pid: int):
        self.line, self.pid = line, pid
        self._ended = False

    def ask(self, message: Any, timeout: float | None = None) -> Any:
        """Return the answer to ``message``. Raises the process's error; TimeoutError and ProcessLost, which end it."""
        try:
            self.line.settimeout(timeout)
            _send(self.line, message)
            found = _receive(self.line)
        except TimeoutError:
            self.close()
            raise
        except (OSError, ProcessLost, ValueError) as error:
            self.close()
            raise ProcessLost(str(error) or type(error).__name__) from None
        if "error" in found:
            kind = getattr(errors, found["kind"], RunFailed)
            raise kind(found["error"]) if issubclass(kind, PosttrainError) else RunFailed(found["error"])
        return found["answer"]

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._ended:
            return
        self._ended = True
        for end in (os.killpg, os.kill):  # it may not lead a group yet
            with contextlib.suppress(ProcessLookupError, PermissionError):
                end(self.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            self.line.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for an answer
        self.line.close()


def _send(line: socket.socket, message: Any) -> None:
    data = json.dumps(message).encode()
    line.sendall(len(data).to_bytes(8, "big") + data)


def _receive(line: socket.socket) -> Any:
    return json.loads(_exactly(line, int.from_bytes(_exactly(line, 8), "big")))


def _exactly(line: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = line.recv(min(_PART, count - len(parts)))
        if not part:
            raise ProcessLost("it ended its process")
        parts += part
    return bytes(parts)


def main() -> None:
    """Load, then fork a process for each line that arrives, until the other side is gone."""
    line = socket.socket(fileno=int(sys.argv[1]))
    module, _, name = sys.argv[2].partition(":")
    made: list[Any] = []

    def load(payload: Any) -> Any:
        loader: Loader = getattr(importlib.import_module(module), name)
        facts, make = loader(payload)
        made.append(make)
        return facts

    _reply(line, load)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no parent waits for them
    while made:
        order, descriptors, _, _ = socket.recv_fds(line, 1, 1)
        if not order or not descriptors:
            return
        pid = os.fork()
        if not pid:
            line.close()
            _serve(socket.socket(fileno=descriptors[0]), made[0])
        os.close(descriptors[0])
        line.sendall(pid.to_bytes(8, "big"))


def _serve(line: socket.socket, make: Callable[[], Callable[[Any], Any]]) -> NoReturn:
    """Answer messages in a forked process; it ends when either of its other sides ends."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    end_with_parent()
    handler: list[Callable[[Any], Any]] = []

    def answer(message: Any) -> Any:
        if not handler:
            handler.append(make())
        return handler[0](message)

    try:
        while True:
            _reply(line, answer)
    finally:
        os._exit(0)


def _reply(line: socket.socket, answer: Callable[[Any], Any]) -> None:
    """Answer one message. Raises ProcessLost or OSError where the other side is gone."""
    message = _receive(line)
    try:
        found = {"answer": answer(message)}
        json.dumps(found)
    except BaseException as error:
        kind = type(error).__name__
        text = str(error) if isinstance(error, PosttrainError) else f"{kind}: {' '.join(str(error).split())[:300]}"
        found = {"error": text, "kind": kind}
    _send(line, found)

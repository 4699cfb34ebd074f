"""Runs as forks of this process, which has imported everything: a run costs no seconds of importing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from posttrain.cli import main as command
from posttrain.generation.local import process as sampling
from posttrain.generation.local import worker

#: Seconds that a run may take, and that what a killed one leaves may live.
LONGEST, LINGER = 240, 20


class Forked:
    """The sampling process as a fork: what ``subprocess.Popen`` gives, without the seconds of an import."""

    def __init__(self, words, pass_fds, env):
        self._lock, self._code = threading.Lock(), None
        self.pid = os.fork()
        if not self.pid:
            sys.argv = ["worker", str(pass_fds[0])]
            for other in range(3, 64):  # a program of its own would have none of these
                if other != pass_fds[0]:
                    with contextlib.suppress(OSError):
                        os.close(other)
            try:
                worker.main()
            finally:
                os._exit(0)

    def wait(self, timeout=None):
        """Wait for the end."""
        deadline = time.monotonic() + (timeout or LONGEST)
        while time.monotonic() < deadline:
            with self._lock:  # the reader of answers waits too
                if self._code is None:
                    found, code = os.waitpid(self.pid, os.WNOHANG)
                    self._code = os.waitstatus_to_exitcode(code) if found else None
                if self._code is not None:
                    return self._code
            time.sleep(0.01)
        raise sampling.subprocess.TimeoutExpired("worker", timeout)

    def kill(self) -> None:
        """End it."""
        os.kill(self.pid, signal.SIGKILL)


class Popen:
    """Stands for ``subprocess`` where the sampling process is started."""

    TimeoutExpired = sampling.subprocess.TimeoutExpired
    Popen = Forked


def fork(words: list[str], log: Path, killer: Any | None, rank: int, ranks: int, port: int) -> int:
    """Run one command in a fork of this process; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        if ranks > 1:
            names = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"})
        sampling.subprocess = Popen
        if killer is not None:
            killer.arm()
        code = command.main(words)
        if killer is not None:
            killer.told.write_text(json.dumps(killer.seen))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(words: list[str], log: Path, killer: Any | None = None, ranks: int = 1) -> int:
    """Run a command in as many ranks as it needs; the exit code of rank 0, once all of it has ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [fork(words, log, killer if rank == 0 else None, rank, ranks, port) for rank in range(ranks)]
    codes = {}
    deadline = time.monotonic() + LONGEST
    while len(codes) < ranks:
        for process in processes:
            if process not in codes:
                found, code = os.waitpid(process, os.WNOHANG)
                if found:
                    codes[process] = os.waitstatus_to_exitcode(code)
        if codes and min(codes.values()) < 0:
            deadline = min(deadline, time.monotonic() + LINGER)
        if time.monotonic() > deadline:
            for process in set(processes) - set(codes):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.01)
    for process in processes:
        if not _ended(process):
            raise AssertionError(f"processes of session {process} outlive their run: {log}")
    return codes[processes[0]]


def _ended(session: int) -> bool:
    """Whether no process of a session is left, its sampling process among them."""
    deadline = time.monotonic() + LINGER
    while time.monotonic() < deadline:
        alive = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] not in "ZX":
                alive.append(stat.parent.name)
        if not alive:
            return True
        time.sleep(0.05)
    for process in alive:
        os.kill(int(process), signal.SIGKILL)
    return False

"""Owner of a run directory: the one process that may write it, identified by host, process id and start time."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from posttrain.errors import SettingsError
from posttrain.runs.durable import replace_text, writing

try:
    import fcntl
except ImportError:  # this system has no such locks: the owner's record must do
    fcntl = None  # type: ignore[assignment]


class Owner:
    """Ownership of one run directory: a record of the owner, and a system lock that ends with the process.

    The record decides across hosts, where the lock may not reach; the lock decides between two that start at once.
    """

    RECORD, LOCK = ".owner.json", ".owner.lock"
    FILES = ".owner."

    def __init__(self, path: Path, made: list[Path], lock: IO[str]):
        self.path, self._made, self._lock, self._process = path, made, lock, os.getpid()

    @classmethod
    def claim(cls, path: Path, take_over: bool = False) -> Owner:
        """Create ``path`` where it is missing and own it. Raises SettingsError where that fails, or another owns it."""
        try:
            made = _make(path)
            _check_owner(path, True, take_over)  # before the lock is touched: this process may hold it already
            lock, free = _lock(path / cls.LOCK)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise SettingsError(
                f"The run directory '{path}' cannot be made or written: {reason}. Choose another --output."
            ) from None
        owner = cls(path, made, lock)
        try:
            _check_owner(path, free, take_over)
            owner._write()
        except BaseException:
            lock.close()
            raise
        return owner

    def _write(self) -> None:
        record = {"host": socket.gethostname(), "process": os.getpid(), "started": started(os.getpid()), "job": _job()}
        with writing(f"'{self.path / self.RECORD}'", "Make room, or choose another --output."):
            replace_text(self.path / self.RECORD, json.dumps(record) + "\n")

    def release(self) -> None:
        """Give up the directory; folders that were created for it and are still empty are deleted."""
        if os.getpid() != self._process:  # a fork of the owner owns nothing
            return
        known = _read(self.path)
        with contextlib.suppress(OSError):
            if known is not None and known.get("process") == self._process:
                (self.path / self.RECORD).unlink()
            (self.path / self.LOCK).unlink()
        self._lock.close()
        with contextlib.suppress(OSError):
            for folder in reversed(self._made):
                folder.rmdir()


@dataclass(frozen=True)
class KnownOwner:
    """The recorded owner of a run directory."""

    process: int
    host: str
    alive: bool | None
    """Whether its process lives; None for an owner on another host, where that is unknown."""


def find_owner(path: Path) -> KnownOwner | None:
    """Return the recorded owner of a run directory; None where it has none."""
    known = _read(path)
    if known is None:
        return None
    process, host = known.get("process", 0), str(known.get("host"))
    here = host == socket.gethostname()
    alive = known.get("started") is not None and known["started"] == started(process)
    return KnownOwner(process, host, alive if here else None)


def _check_owner(path: Path, free: bool, take_over: bool) -> None:
    """Raise SettingsError where the recorded owner lives, or where that is unknown and not overruled."""
    known = _read(path)
    if known is None:
        if not free:
            raise SettingsError(f"'{path}' is being claimed by another process. Wait for it, or end it.")
        return
    here = known.get("host") == socket.gethostname()
    alive = here and known.get("started") is not None and known["started"] == started(known.get("process", 0))
    same_job = known.get("job") is not None and known["job"] == _job()
    if alive or (here and not free):
        mine = " (this process)" if known.get("process") == os.getpid() else ""
        raise SettingsError(
            f"'{path}' is owned by process {known.get('process')} on host {known.get('host')}{mine}, which is still "
            f"running. Wait for it, or end it: kill {known.get('process')}"
        )
    if not here and not take_over and not (same_job and free):
        raise SettingsError(
            f"'{path}' is owned by process {known.get('process')} on host {known.get('host')}; whether it still runs "
            f"cannot be seen from {socket.gethostname()}. If it has ended, repeat the command with --take-over."
        )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((path / Owner.RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _make(path: Path) -> list[Path]:
    """Create a folder and its parents; return those that were missing, outermost first."""
    missing = []
    folder = path
    while not os.path.lexists(folder):
        missing.append(folder)
        folder = folder.parent
    path.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _lock(path: Path) -> tuple[IO[str], bool]:
    """Lock a file while this process lives; return the file, and False where another process holds the lock."""
    while True:
        file = path.open("a", encoding="utf-8")
        if fcntl is None:
            return file, True
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return file, error.errno not in (errno.EACCES, errno.EAGAIN)  # a disk without locks excludes no process
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file, True
        file.close()  # its owner had just deleted it


def started(process: int) -> str | None:
    """Return the start time of a process of this machine, as the system counts; None for one that is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return None if fields[0] in "ZX" else f"{boot} {fields[19]}"
    except OSError:
        if Path("/proc/self").exists():
            return None
    import psutil

    try:
        return str(psutil.Process(process).create_time())
    except psutil.Error:
        return None


def _job() -> str | None:
    """Return the name of the job that restarts its processes, torchrun's or the scheduler's, also on another host."""
    return os.environ.get("TORCHELASTIC_RUN_ID") or os.environ.get("SLURM_JOB_ID")

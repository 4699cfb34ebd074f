"""Execution of programs in the sandbox: starting them, their input and output, and their time limit."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from posttrain.errors import DependencyError, RunFailed
from posttrain.sandbox import bubblewrap
from posttrain.sandbox.limits import Limits, Outcome
from posttrain.sandbox.memory import WATCH, Limiter, in_cgroup, limiters
from posttrain.sandbox.syscalls import call_filter

#: Python without the program's folder on the import path, without compiled files, with texts in UTF-8.
PYTHON = [sys.executable, "-s", "-P", "-B", "-X", "utf8"]
#: Bytes of the error output that are kept where bubblewrap itself may report an error.
_PART = 65536


class Box:
    """One program in the sandbox. ``files`` by name are in its folder; ``stdin`` is text or a file descriptor.

    ``keep`` are further file descriptors that it gets; ``stdout`` is one to write to instead of being read here.
    ``limiter`` bounds the memory of its processes together [what ``ready`` has found].
    """

    def __init__(
        self,
        words: list[str],
        limits: Limits,
        files: dict[str, str],
        stdin: str | int = "",
        stdout: int | None = None,
        keep: tuple[int, ...] = (),
        limiter: Limiter | None = None,
    ):
        self.limits, self.limiter = limits, limiter or ready()
        self.read = {"output": bytearray(), "errors": bytearray()}
        self._end: str = "exited"
        self._killed = False
        self._status, status = os.pipe()
        try:
            with _memory_files(files) as own, _memory_files({"filter": call_filter(), "stdin": stdin}) as ours:
                command = bubblewrap.command(words, own, limits, ours["filter"], status)
                self.process = subprocess.Popen(
                    in_cgroup(command, limits.memory_mb) if self.limiter == "cgroup" else command,
                    stdin=ours["stdin"],
                    stdout=subprocess.PIPE if stdout is None else stdout,
                    stderr=subprocess.PIPE,
                    pass_fds=(*own.values(), ours["filter"], status, *keep),
                    start_new_session=True,
                    cwd="/",
                )
        except BaseException:
            os.close(self._status)
            raise
        finally:
            os.close(status)
        self.deadline = time.monotonic() + limits.seconds
        if self.limiter == "watch":
            WATCH.add(self.process.pid, limits.memory_mb, lambda: self.kill("memory"))

    def pipes(self) -> dict[int, str]:
        """Return the streams still to be read: file descriptor -> name."""
        streams = {"output": self.process.stdout, "errors": self.process.stderr}
        return {stream.fileno(): name for name, stream in streams.items() if stream is not None and not stream.closed}

    def take(self, name: str) -> bool:
        """Read what is available of one stream; False where it has ended."""
        stream = self.process.stdout if name == "output" else self.process.stderr
        assert stream is not None
        part = os.read(stream.fileno(), _PART)
        left = self.limits.output_bytes - sum(map(len, self.read.values()))
        self.read[name] += part[: max(0, left)]
        if len(part) > left:
            self.kill("output")
        if not part:
            stream.close()
        return bool(part)

    def kill(self, why: str = "exited") -> None:
        """Kill the program and all its processes; they share a namespace that ends with its first process."""
        if self.process.poll() is None:
            self._end, self._killed = why if self._end == "exited" else self._end, True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def end(self) -> str:
        """How it ended or was killed, as in ``Outcome``; ``exited`` while it runs."""
        if self.limiter == "cgroup" and not self._killed and self.process.poll() == -signal.SIGKILL:
            return "memory"  # no program can signal the process that holds its namespace; only the kernel was left
        return self._end

    def outcome(self) -> Outcome:
        """Wait for the program within its time limit; return how it ended."""
        while True:
            try:
                code = self.process.wait(max(0.0, self.deadline - time.monotonic()))
                break
            except subprocess.TimeoutExpired:
                self.kill("time")
                code = self.process.wait()
                break
        output, errors = (bytes(self.read[name]).decode(errors="replace") for name in ("output", "errors"))
        began = b"exit-code" in os.read(self._status, _PART)
        if self.end == "exited" and not began and errors.startswith("bwrap: "):
            raise RunFailed(f"The sandbox could not be set up: {errors.strip()[:300]}. {bubblewrap.ELSEWHERE}")
        return Outcome(self.end, code, output, errors)  # type: ignore[arg-type]

    def close(self) -> None:
        """Kill the program if it is running, and close its pipes."""
        WATCH.remove(self.process.pid)
        self.kill()
        self.process.wait()
        os.close(self._status)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def watch(boxes: list[Box], done: Callable[[], bool] = lambda: False) -> None:
    """Read the programs' output until all have closed their streams, exceeded their time, or ``done``."""
    with selectors.DefaultSelector() as selector:
        for box in boxes:
            for number, name in box.pipes().items():
                selector.register(number, selectors.EVENT_READ, (box, name))
        while selector.get_map() and not done():
            left = min(box.deadline for box in boxes) - time.monotonic()
            ready = selector.select(max(0.0, left)) if left > 0 else []
            for key, _ in ready:
                box, name = key.data
                if not box.take(name):
                    selector.unregister(key.fd)
            if not ready and left <= 0:
                for box in boxes:
                    box.kill("time")
                return


def execute(source: str, stdin: str, limits: Limits) -> Outcome:
    """Run a program in Python on ``stdin``. Raises DependencyError where there is no sandbox, RunFailed."""
    ready()
    return _execute(source, stdin, limits)


def _execute(source: str, stdin: str, limits: Limits, limiter: Limiter | None = None) -> Outcome:
    box = Box([*PYTHON, "program.py"], limits, {"program.py": source}, stdin, limiter=limiter)
    try:
        watch([box])
        return box.outcome()
    finally:
        box.close()


@contextmanager
def _memory_files(texts: Mapping[str, str | bytes | int]) -> Iterator[dict[str, int]]:
    """Yield sealed anonymous files with the texts, positioned at their start.

    A file descriptor in place of a text is passed on.
    """
    found: dict[str, int] = {}
    try:
        for name, text in texts.items():
            if isinstance(text, int):
                found[name] = os.dup(text)
                continue
            number = found[name] = os.memfd_create("sandbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            data = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
            with os.fdopen(number, "wb", closefd=False) as file:
                file.write(data)
            os.lseek(number, 0, os.SEEK_SET)
            fcntl.fcntl(number, fcntl.F_ADD_SEALS, _SEALS)
        yield found
    finally:
        for number in found.values():
            os.close(number)


_SEALS = 0x1 | 0x2 | 0x4 | 0x8  # no further seals, no shrinking, no growing, no writing


@functools.cache
def ready() -> Limiter:
    """Test every promise of the sandbox, once, and return what bounds the memory of a program's processes together.

    Raises DependencyError that names the promise that this machine cannot keep.
    """
    bubblewrap.tools()
    reason = ""
    for limiter in limiters():
        reason = _broken(limiter)
        if not reason:
            return limiter
    raise DependencyError(_refusal(reason))


def _broken(limiter: Limiter) -> str:
    """Return which promises a program could break, and how; empty where none."""
    limits = Limits(seconds=20.0, memory_mb=256, processes=8, disk_mb=4)
    try:
        found = _execute(_PROBE, str(os.getpid()), limits, limiter)
    except RunFailed as error:
        return str(error)
    kept = found.output.split() + ["memory-of-all"] * (found.end == "memory")
    missing = [promise for promise in _PROMISES if promise not in kept]
    if not missing:
        return ""
    detail = (found.errors.strip() or f"it ended by {found.end} with code {found.code}").splitlines()[-1][:200]
    return f"not kept: {', '.join(missing)} ({detail})"


def _refusal(reason: str) -> str:
    reason = reason.removesuffix(f". {bubblewrap.ELSEWHERE}")
    return (
        f"Programs of a model cannot be kept apart on this machine: {reason}. "
        "bubblewrap needs user namespaces. Where the system forbids them, root allows them with sysctl -w "
        "kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu) or user.max_user_namespaces=10000, or in a container "
        f"with --security-opt seccomp=unconfined. {bubblewrap.ELSEWHERE}"
    )


_PROMISES = (
    *("network", "processes", "memory", "memory-of-all", "disk", "files", "calls", "privileges", "environment"),
)
#: Breaks every promise; writes the names of those that held. The last one must end it: children that each take less
#: than the limit, and more together.
_PROBE = """
import ctypes, os, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def held(name, attempt, *errors):
    try:
        attempt()
    except errors:
        print(name)
def fork():
    for _ in range(64):
        if not os.fork():
            os.close(end)
            os.read(hold, 1)
            block = b"1" * (100 << 20)
            time.sleep(3)
            os._exit(0)
def fill():
    for number in range(8):
        with open(f"/tmp/{number}", "wb") as file:
            file.write(bytes(1 << 20))
def call():
    if libc.unshare(0x10000000) or libc.ptrace(0, 0, 0, 0):
        raise OSError(ctypes.get_errno())
hold, end = os.pipe()
held("network", lambda: socket.socket(), OSError)
held("memory", lambda: bytearray(300 << 20), MemoryError)
held("disk", fill, OSError)
held("files", lambda: open("/usr/planted", "w"), OSError)
held("calls", call, OSError)
if seen := [path for path in ("/proc/self", "/sys/kernel", "/etc/passwd", "/var", "/run") if os.path.exists(path)]:
    raise SystemExit("it sees " + " ".join(seen))
rights = (ctypes.c_uint32 * 6)()
libc.capget((ctypes.c_uint32 * 2)(0x20080522, 0), rights)
if libc.prctl(39, 0, 0, 0, 0) == 1 and not any(rights):  # no new privileges, and none at hand
    print("privileges")
if not {"USER", "LOGNAME", "SSH_AUTH_SOCK", "PYTHONPATH"} & set(os.environ):
    print("environment")
sys.stdout.flush()
held("processes", fork, BlockingIOError)
sys.stdout.flush()
os.close(end)
while True:
    os.wait()
"""

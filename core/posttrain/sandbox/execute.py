"""Starting programs in the sandbox, feeding them, reading what they write, and ending them in time."""

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
from posttrain.sandbox.syscalls import call_filter

#: Without the folder of the program on the path of imports, without files of compiled code, texts in UTF-8.
PYTHON = [sys.executable, "-s", "-P", "-B", "-X", "utf8"]
#: Bytes of the error output that are kept where bubblewrap itself may have something to say.
_PART = 65536


class Box:
    """One program in the sandbox. ``files`` by name lie in its folder; ``stdin`` is text or a file descriptor.

    ``keep`` are file descriptors that it gets besides; ``stdout`` is one to write to instead of being read here.
    """

    def __init__(
        self,
        words: list[str],
        limits: Limits,
        files: dict[str, str],
        stdin: str | int = "",
        stdout: int | None = None,
        keep: tuple[int, ...] = (),
    ):
        self.limits = limits
        self.read = {"output": bytearray(), "errors": bytearray()}
        self._end: str = "exited"
        self._status, status = os.pipe()
        try:
            with _memory_files(files) as own, _memory_files({"filter": call_filter(), "stdin": stdin}) as ours:
                self.process = subprocess.Popen(
                    bubblewrap.command(words, own, limits, ours["filter"], status),
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

    def pipes(self) -> dict[int, str]:
        """What is still to be read: file descriptor -> what it is."""
        streams = {"output": self.process.stdout, "errors": self.process.stderr}
        return {stream.fileno(): name for name, stream in streams.items() if stream is not None and not stream.closed}

    def take(self, name: str) -> bool:
        """Read what is there of one stream; False where it has ended."""
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
        """End the program and all that it started; they share a namespace that ends with its first process."""
        if self.process.poll() is None:
            self._end = why
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def outcome(self) -> Outcome:
        """How it ended; waits for it, and for as long as its time allows."""
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
        if self._end == "exited" and not began and errors.startswith("bwrap: "):
            raise RunFailed(f"The sandbox could not be set up: {errors.strip()[:300]}. {bubblewrap.ELSEWHERE}")
        return Outcome(self._end, code, output, errors)  # type: ignore[arg-type]

    def close(self) -> None:
        """End it if it has not ended, and give back its pipes."""
        self.kill()
        self.process.wait()
        os.close(self._status)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def watch(boxes: list[Box], done: Callable[[], bool] = lambda: False) -> None:
    """Read what the programs write until all have closed their streams, their time is over, or ``done``."""
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


def _execute(source: str, stdin: str, limits: Limits) -> Outcome:
    box = Box([*PYTHON, "program.py"], limits, {"program.py": source}, stdin)
    try:
        watch([box])
        return box.outcome()
    finally:
        box.close()


@contextmanager
def _memory_files(texts: Mapping[str, str | bytes | int]) -> Iterator[dict[str, int]]:
    """Files without a name that hold the texts, from their beginning, and that nobody can change.

    A file descriptor in the place of a text stays what it is.
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
def ready() -> None:
    """Try every promise of the sandbox, once. Raises DependencyError that says which one this machine cannot keep."""
    bubblewrap.tools()
    limits = Limits(seconds=20.0, memory_mb=256, processes=8, disk_mb=4)
    try:
        found = _execute(_PROBE, str(os.getpid()), limits)
    except RunFailed as error:
        raise DependencyError(_refusal(str(error))) from None
    kept = found.output.split()
    missing = [promise for promise in _PROMISES if promise not in kept]
    if found.end != "exited" or missing:
        detail = (found.errors.strip() or f"it ended by {found.end} with code {found.code}").splitlines()[-1][:200]
        raise DependencyError(_refusal(f"not kept: {', '.join(missing) or 'its end'} ({detail})"))


def _refusal(reason: str) -> str:
    reason = reason.removesuffix(f". {bubblewrap.ELSEWHERE}")
    return (
        f"Programs of a model cannot be kept apart on this machine: {reason}. "
        "bubblewrap needs user namespaces. Where the system forbids them, root allows them with sysctl -w "
        "kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu) or user.max_user_namespaces=10000, or in a container "
        f"with --security-opt seccomp=unconfined. {bubblewrap.ELSEWHERE}"
    )


_PROMISES = ("network", "processes", "memory", "disk", "files", "calls", "privileges", "environment")
#: Breaks every promise; writes the names of those that held.
_PROBE = """
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def held(name, attempt, *errors):
    try:
        attempt()
    except errors:
        print(name)
def fork():
    for _ in range(64):
        if not os.fork():
            os.read(hold, 1)
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
"""

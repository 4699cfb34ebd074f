"""No program leaves the sandbox: files, network, processes, the kernel, and the machine's memory, disk and time."""

import os
import platform
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from posttrain.sandbox.execute import execute
from posttrain.sandbox.limits import Limits

from .attempts import GREEDY, HARMFUL, REAL, source

LIMITS = Limits(seconds=6.0, memory_mb=256, processes=8, disk_mb=8, output_bytes=100_000)
KEYCTL = {"x86_64": 250, "aarch64": 219}.get(platform.machine(), 219)


@pytest.fixture
def facts(tmp_path, monkeypatch):
    """What is there to be reached, and really there: it is looked at afterwards."""
    secret, folder = tmp_path / "secret", tmp_path / "folder"
    secret.write_text("a secret")
    folder.mkdir()
    tmp_path.chmod(0o755)
    monkeypatch.setenv("SANDBOX_TEST_SECRET", "a secret")
    name = f"posttrain-{os.getpid()}-{time.monotonic_ns()}"
    kinds = [(socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_INET6, ("::1", 0))]
    kinds += [(socket.AF_UNIX, f"/tmp/{name}"), (socket.AF_UNIX, f"\0{name}")]
    listeners = []
    for family, address in kinds:
        try:
            listeners.append(
                socket.create_server(address, family=family) if family != socket.AF_UNIX else _unix(address)
            )
        except OSError:  # no IPv6 here
            listeners.append(None)
    ports = [one.getsockname()[1] if one else 1 for one in listeners[:2]]
    names = {"secret": str(secret), "folder": str(folder), "port": ports[0], "port6": ports[1]}
    yield names | {"socket": f"/tmp/{name}", "abstract": name, "pid": os.getpid(), "keyctl": KEYCTL}
    for one in filter(None, listeners):
        one.close()
    os.unlink(f"/tmp/{name}")
    assert secret.read_text() == "a secret"
    assert secret.stat().st_nlink == 1 or (folder / "hard").exists()


def _unix(address):
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    return server


@pytest.mark.parametrize("name", REAL)
def test_an_attempt_succeeds_outside(name, facts, tmp_path):
    """Otherwise what the sandbox refuses would prove nothing."""
    program = [sys.executable, "-c", source(name, REAL[name], facts)]
    found = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "TRIED" in found.stdout, found.stderr
    if "ESCAPED" not in found.stdout:
        pytest.skip("this machine refuses it to every program")


@pytest.mark.parametrize("name", [*REAL, *HARMFUL])
def test_nothing_is_reached(name, sandbox, facts):
    outcome = execute(source(name, {**REAL, **HARMFUL}[name], facts), "", LIMITS)
    assert "ESCAPED" not in outcome.output
    assert ("TRIED" in outcome.output and outcome.end == "exited") or name == "signal-everybody", outcome
    assert os.listdir(facts["folder"]) == []


#: How each ends: by itself (TRIED, or an error), or by the sandbox.
ENDS = {
    **dict.fromkeys(("fork-bomb", "endless-loop", "sleeps", "deaf"), "time"),
    **dict.fromkeys(("output", "error-output"), "output"),
    "memory-of-children": "TRIED or memory",
    **dict.fromkeys(("thread-bomb", "disk", "disk-in-many-files", "daemon"), "TRIED"),
    **dict.fromkeys(("memory", "memory-at-once", "recursion", "stack-in-c"), "error or time"),
}


@pytest.mark.parametrize("name", GREEDY)
def test_nothing_is_taken(name, sandbox, facts):
    before, start = processes(), time.monotonic()
    quick = Limits(seconds=1.5, memory_mb=256, processes=8, disk_mb=8, output_bytes=100_000)
    outcome = execute(source(name, GREEDY[name], facts), "", quick)
    assert time.monotonic() - start < 4.0
    assert "ESCAPED" not in outcome.output
    assert len(outcome.output) + len(outcome.errors) <= 100_000
    if ENDS[name] == "TRIED":
        assert (outcome.end, "TRIED" in outcome.output) == ("exited", True), outcome
    elif ENDS[name] == "TRIED or memory":  # whether the parent ends first
        assert outcome.end == "memory" or "TRIED" in outcome.output
    elif ENDS[name] == "error or time":
        assert (outcome.end, outcome.code) != ("exited", 0)
    else:
        assert outcome.end == ENDS[name]
    deadline = time.monotonic() + 5
    while (left := processes() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, "a process of the sandbox is still there"


def processes():
    """Processes of sandboxes, by their programs' command line."""
    found = set()
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{number}/cmdline").read_bytes()
        except OSError:
            continue
        if b"program.py" in words:
            found.add(int(number))
    return found


def test_a_run_that_is_killed_takes_its_programs_along(sandbox, tmp_path):
    text = (
        "from posttrain.sandbox.execute import execute\nfrom posttrain.sandbox.limits import Limits\n"
        "print('ready', flush=True)\nexecute('import time; time.sleep(3600)', '', Limits(seconds=3000))"
    )
    before = processes()
    run = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE)
    assert run.stdout.readline() == b"ready\n"
    deadline = time.monotonic() + 20
    while not (processes() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    assert processes() - before
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    deadline = time.monotonic() + 10
    while processes() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes() - before

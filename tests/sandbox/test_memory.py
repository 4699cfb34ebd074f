"""All processes of a program together stay within its memory, and no program that does is ended."""

import os
import signal
import stat
import time

import pytest
from posttrain.cli.main import main
from posttrain.sandbox import execute, memory
from posttrain.sandbox.execute import PYTHON, Box
from posttrain.sandbox.limits import Limits
from posttrain.sandbox.program_tests import ProgramTests

from .test_escapes import processes

LIMITS = Limits(seconds=20.0, memory_mb=512)
#: Each child takes 200 MB, for itself, with ``{start}`` before.
CHILDREN = """
import os, time
for _ in range({count}):
    if not os.fork():
        {start}
        block = b"1" * (200 << 20)
        time.sleep({seconds})
        os._exit(0)
for _ in range({count}):
    os.wait()
time.sleep({seconds})
print("THROUGH")
"""


def run(program):
    return execute.execute(program, "", LIMITS)


@pytest.mark.parametrize("start", ["pass", "os.setsid()", "os.setsid(); os.fork() and os._exit(0)"])
def test_children_that_take_more_together_are_stopped(sandbox, start):
    begun = time.monotonic()
    outcome = run(CHILDREN.format(count=8, seconds=6, start=start))
    assert (outcome.end, outcome.output) == ("memory", "")
    assert time.monotonic() - begun < 6
    deadline = time.monotonic() + 5
    while processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes()


def test_children_within_the_limit_go_on(sandbox):
    outcome = run(CHILDREN.format(count=2, seconds=0.3, start="pass"))
    assert (outcome.end, outcome.output) == ("exited", "THROUGH\n")


def test_one_process_within_the_limit_goes_on(sandbox):
    outcome = run('import time\nblock = b"1" * (400 << 20)\ntime.sleep(0.3)\nprint("THROUGH")')
    assert (outcome.end, outcome.output) == ("exited", "THROUGH\n")


def test_what_a_fork_shares_counts_once(sandbox):
    shared = """
import os, time
block = b"1" * (300 << 20)
for _ in range(6):
    if not os.fork():
        time.sleep(0.5)
        os._exit(0)
for _ in range(6):
    os.wait()
print("THROUGH")
"""
    outcome = run(shared)  # resident sizes add up to 2,100 MB
    assert (outcome.end, outcome.output) == ("exited", "THROUGH\n")


def test_the_grade_says_that_it_was_memory(sandbox):
    program = CHILDREN.format(count=8, seconds=6, start="pass")
    said = "its processes together took more than 512 MiB of memory"
    assert said in sandbox.grade(program, ProgramTests.of([{"input": "", "output": "THROUGH"}]), LIMITS).text
    grade = sandbox.grade(f"def f():\n    {program.replace(chr(10), chr(10) + '    ')}", ProgramTests.of("f()"), LIMITS)
    assert grade.passed == 0
    assert said in grade.text


def test_nobody_watches_when_nothing_runs(sandbox):
    run("print(1)")
    deadline = time.monotonic() + 5
    while memory.WATCH._thread is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert memory.WATCH._thread is None


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    """A systemd-run that starts the command without any control group."""
    tool = tmp_path / "systemd-run"
    tool.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift\nexec "$@"\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    execute.ready.cache_clear()
    yield
    execute.ready.cache_clear()


def test_a_control_group_that_limits_nothing_is_found_out(sandbox, systemd):
    assert "memory-of-all" in execute._broken("cgroup")
    assert execute.ready() == "watch"


def test_the_end_by_a_control_group_is_that_of_memory(sandbox, systemd):
    """The kernel kills all processes of the group, also the one outside of the sandbox that holds it."""
    box = Box([*PYTHON, "program.py"], LIMITS, {"program.py": "import time\ntime.sleep(9)"}, limiter="cgroup")
    try:
        os.kill(box.process.pid, signal.SIGKILL)
        assert box.outcome().end == "memory"
    finally:
        box.close()
    box = Box([*PYTHON, "program.py"], LIMITS, {"program.py": "import time\ntime.sleep(9)"}, limiter="cgroup")
    box.close()
    assert box.end == "exited"


def test_doctor_says_which_is_in_force(sandbox, capsys):
    assert main(["doctor"]) == 0
    way = memory.SHOWN[execute.ready()]
    assert f"sandbox for programs of a model: works: memory is limited by {way}" in capsys.readouterr().out

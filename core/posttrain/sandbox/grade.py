"""Grading of a program by tests: how many it passes, and the message of the first failure."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from posttrain.sandbox.execute import PYTHON, Box, execute, ready, watch
from posttrain.sandbox.limits import Limits, Outcome
from posttrain.sandbox.program_tests import ProgramTests

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
#: Most characters of a message about a program.
_LONGEST = 2000


@dataclass(frozen=True)
class Grade:
    """Result of a program's tests."""

    passed: int
    total: int
    text: str
    """The first test that failed and why; empty where none did."""

    @property
    def share(self) -> float:
        """Share of passed tests, from 0 to 1."""
        return self.passed / self.total


class Sandbox(Protocol):
    """A place where programs run."""

    def grade(self, program: str, tests: ProgramTests, limits: Limits) -> Grade:
        """Run a program by its tests. Raises DependencyError and RunFailed where it cannot be run safely."""
        ...


class LocalSandbox:
    """The sandbox of this machine. Raises DependencyError where there is none that keeps all promises."""

    def __init__(self) -> None:
        ready()

    def grade(self, program: str, tests: ProgramTests, limits: Limits) -> Grade:
        """Run a program by its tests, each pair in a separate process."""
        if tests.kind == "pairs":
            return grade_pairs(lambda stdin: execute(program, stdin, limits), tests, limits)
        return _grade_calls(program, tests, limits)


def program_in(text: str) -> str:
    """Return the program in a model's answer: its last fenced block of Python, or the text without a fence."""
    found = _FENCE.findall(text.replace("\r\n", "\n"))
    python = [body for name, body in found if name.lower() in ("python", "py", "python3", "")]
    return (python or [body for _, body in found] or [text])[-1]


def grade_all(sandbox: Sandbox, jobs: Sequence[tuple[str, ProgramTests]], limits: Limits, workers: int) -> list[Grade]:
    """Grade many programs, ``workers`` at a time, in their order."""
    with ThreadPoolExecutor(workers, "sandbox") as pool:
        try:
            return list(pool.map(lambda job: sandbox.grade(job[0], job[1], limits), jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def grade_pairs(run: Callable[[str], Outcome], tests: ProgramTests, limits: Limits) -> Grade:
    """Run a program on each input and compare its output; the expected output never enters the sandbox."""
    passed, text = 0, ""
    for stdin, expected in tests.pairs:
        outcome = run(stdin)
        if outcome.end == "exited" and outcome.code == 0 and lines_of(outcome.output) == lines_of(expected):
            passed += 1
        elif not text:
            text = _pair_text(stdin, expected, outcome, limits)
        if outcome.end == "time":
            break  # a program that hangs on one input is not tried on all of them
    return Grade(passed, len(tests.pairs), text)


def lines_of(text: str) -> list[str]:
    """Return lines without trailing space, and without empty ones at the end of the text."""
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _pair_text(stdin: str, expected: str, outcome: Outcome, limits: Limits) -> str:
    if outcome.end != "exited":
        return f"input {stdin[:200]!r}: {ended(outcome.end, limits)}"
    if outcome.code != 0:
        return f"input {stdin[:200]!r}: exit code {outcome.code}\n{outcome.errors[-_LONGEST:]}"
    return f"input {stdin[:200]!r}: expected {expected[:500]!r}, the program wrote {outcome.output[:500]!r}"


def ended(end: str, limits: Limits) -> str:
    """Return why a program was ended, by the ``end`` of its outcome."""
    if end == "time":
        return f"not finished after {limits.seconds:g} seconds"
    if end == "memory":
        return f"its processes together took more than {limits.memory_mb} MiB of memory"
    return f"more than {limits.output_bytes} bytes of output"


def _grade_calls(program: str, tests: ProgramTests, limits: Limits) -> Grade:
    """Run the tests in one sandbox and the program in another, connected by plain data."""
    bridge = _bridge()
    asks, asked = os.pipe()  # requests of the tests to the program
    answers, answered = os.pipe()
    boxes: list[Box] = []
    try:
        files = {"bridge.py": bridge, "program.py": program}
        boxes.append(Box([*PYTHON, "bridge.py", "program"], limits, files, stdin=asks, stdout=answered))
        words = [*PYTHON, "bridge.py", str(answers), str(asked), tests.kind, tests.entry_point]
        files = {"bridge.py": bridge, "tests.py": tests.source}
        boxes.append(Box(words, limits, files, keep=(answers, asked)))
    except BaseException:
        for box in boxes:
            box.close()
        raise
    finally:
        for number in (asks, asked, answers, answered):
            os.close(number)
    by_program, by_tests = boxes
    try:
        watch(boxes, lambda: not by_tests.pipes())
        outcome = by_tests.outcome()
        by_program.kill()
        return _grade_of(outcome, by_program, limits)
    finally:
        for box in boxes:
            box.close()


@functools.cache
def _bridge() -> str:
    """Return both files of the bridge as one, which imports nothing of posttrain."""
    texts = [Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("bridge.py", "ends.py")]
    return "\n".join(line for line in "".join(texts).splitlines() if not line.startswith("from posttrain."))


def _grade_of(outcome: Outcome, program: Box, limits: Limits) -> Grade:
    """Read the results that the tests' process has written line by line, as far as it got."""
    lines = []
    for line in outcome.output.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:  # an incomplete line
            break
    passed = sum(line.get("ok") is True for line in lines)
    total = max(sum(line.get("total", 0) for line in lines), sum("ok" in line for line in lines), 1)
    broken = [line["text"] for line in lines if line.get("broken")]
    texts = [line["text"] for line in lines if line.get("text")]
    if outcome.end != "exited" and not texts:
        texts = [ended(outcome.end, limits)]
    elif passed < total and not texts:
        texts = [outcome.errors[-_LONGEST:] or "the program has ended before its tests"]
    printed = bytes(program.read["errors"]).decode(errors="replace")[-500:]
    if program.end == "memory" and texts:
        texts[0] += f"\n  {ended(program.end, limits)}"
    text = (texts[0] if texts else "") + (f"\nprinted: {printed}" if texts and printed.strip() else "")
    return Grade(passed, total + bool(broken), text[:_LONGEST])

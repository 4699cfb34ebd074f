"""The reward ``code``: share of its tests that a program passes, run in a sandbox."""

from __future__ import annotations

import os
from typing import Any

from posttrain.errors import SettingsError
from posttrain.sandbox.grade import Grade, grade_all, program_in
from posttrain.sandbox.limits import Limits
from posttrain.sandbox.program_tests import ProgramTests
from posttrain.sandbox.remote import LOCAL, find_sandbox


def code(
    completions: list[str],
    tests: list[Any],
    entry_point: list[Any] | None = None,
    sandbox: str = LOCAL,
    seconds: float = 10.0,
    memory_mb: int = 512,
    processes: int = 16,
    workers: int | None = None,
    partial: bool = True,
) -> tuple[list[float | None], dict[str, list[Any]]]:
    """Return the share of the column ``tests`` that the completion's last Python block passes; None without tests.

    ``tests`` are pairs of input and output, assertions, or a file for pytest; without ``partial`` only all of them
    count. ``workers`` programs run at a time [one a processor, 8 at most]. The message of the first failing test is the
    column ``feedback``. Raises DependencyError where programs cannot be run safely.
    """
    limits = Limits(seconds, memory_mb, processes)
    limits.check()
    if workers is not None and workers < 1:
        raise SettingsError(f"Reward 'code' has workers {workers}, expected 1 or more.")
    points = entry_point or [None] * len(completions)
    jobs = [
        None if given is None else (program_in(text), ProgramTests.of(given, point))
        for text, given, point in zip(completions, tests, points, strict=True)
    ]
    box = find_sandbox(sandbox)
    at_once = workers or min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
    grades = iter(grade_all(box, [job for job in jobs if job is not None], limits, at_once))
    found: list[Grade | None] = [None if job is None else next(grades) for job in jobs]
    scores = [None if one is None else one.share if partial else float(one.passed == one.total) for one in found]
    return scores, {"feedback": [one.text if one is not None else "" for one in found]}

"""Display of a run's progress in this process, for a person or a program."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO

from posttrain.contract.hookspecs import hookimpl
from posttrain.runs.terminal.notebook import Notebook, in_notebook
from posttrain.runs.terminal.plain import Plain

#: Steps kept to find a metric's direction.
_KEPT = 40
Sample = dict[str, Any] | None


class Form(Protocol):
    """One form in which a run is shown."""

    def say(self, text: str) -> None:
        """Show a line that stays."""

    def step(self, line: dict[str, Any], history: list[dict[str, Any]], left: float, sample: Sample) -> None:
        """Show the state after a step; ``left`` are the seconds to the end."""

    def alert(self, event: dict[str, Any]) -> None:
        """Show an alert."""

    def close(self) -> None:
        """Release the terminal."""


class ProgressLine:
    """Shows a run. ``kind`` is bar, plain, notebook, quiet or json; ``every`` the steps between two lines of a file.

    A bar is drawn in a terminal only: in a notebook it becomes the notebook's form, in a file the plain one. ``sample``
    returns the completion to show, if any.
    """

    def __init__(
        self,
        kind: str,
        total: int,
        every: int,
        stream: TextIO | None = None,
        sample: Callable[[], Sample] = lambda: None,
    ):
        self.kind, self.total, self.every, self.sample = kind, total, max(1, every), sample
        self.form = _form(kind, total, stream or sys.stderr)
        self.begun: float | None = None
        self.first = 0
        self._history: list[dict[str, Any]] = []

    def say(self, text: str) -> None:
        """Show a line that stays."""
        self.form.say(text)

    def step(self, line: dict[str, Any]) -> None:
        """Show a finished step by its ``line`` of metrics.jsonl."""
        number = line["step"]
        if self.begun is None:
            self.begun, self.first = time.monotonic() - line["seconds"], number - 1
        if number % self.every == 0 or number == self.total:
            pace = (time.monotonic() - self.begun) / max(1, number - self.first)
            self.form.step(line, self._history, pace * (self.total - number), self.sample())
        self._history = [*self._history[1 - _KEPT :], line]

    @hookimpl
    def posttrain_alert(self, event: dict[str, Any]) -> None:
        """Show an alert when it is raised."""
        self.form.alert(event)

    def close(self) -> None:
        """Release the terminal, however the run ended."""
        self.form.close()


class Quiet:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Show nothing."""

    def step(self, line: dict[str, Any], history: list[dict[str, Any]], left: float, sample: Sample) -> None:
        """Show nothing."""

    def alert(self, event: dict[str, Any]) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Do nothing: nothing is open."""


class Json(Quiet):
    """Writes one JSON line a step to standard output, and one an alert, with ``"kind": "alert"``."""

    def step(self, line: dict[str, Any], history: list[dict[str, Any]], left: float, sample: Sample) -> None:
        """Write the line of metrics.jsonl, with the completion where it is wanted."""
        shown = {name: value for name, value in line.items() if value == value}  # JSON has no NaN
        _write(shown if sample is None else shown | {"sample": sample})

    def alert(self, event: dict[str, Any]) -> None:
        """Write the line of events.jsonl."""
        _write(event)


def _write(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _form(kind: str, total: int, stream: TextIO) -> Form:
    if kind == "quiet":
        return Quiet()
    if kind == "json":
        return Json()
    if kind == "notebook" or (kind == "bar" and in_notebook()):
        return Notebook(total)
    if kind == "bar" and stream.isatty():
        from posttrain.runs.terminal.bar import Bar

        return Bar(total, stream)
    return Plain(total, stream)

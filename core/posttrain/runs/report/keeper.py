"""Updates of the report of a run in this process, at little cost of the run's time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from posttrain.contract.hookspecs import hookimpl
from posttrain.errors import DependencyError
from posttrain.runs.reading import RunReader
from posttrain.runs.report.page import NAME, write_report

if TYPE_CHECKING:
    from posttrain.runs.directory import RunDirectory

#: Seconds of a run below which no report is written, and least seconds between two writes.
SHORT, PAUSE = 60.0, 60.0
#: Writing takes at most one part in this many of a run's time.
SHARE = 400


class ReportKeeper:
    """An observer that writes report.html now and then, and when the run ends, however it ends.

    ``always``: also for a short run. Errors become events, and never end the run.
    """

    def __init__(self, always: bool = False, clock: Callable[[], float] = time.monotonic):
        self.always, self.clock = always, clock
        self.begun = self.last = clock()
        self.cost = 0.0
        """Seconds that the last write took."""
        self.reader: RunReader | None = None
        self.broken = False

    @hookimpl
    def posttrain_run_started(self, run: Any) -> None:
        """Start the clock."""
        self.begun = self.last = self.clock()

    @hookimpl
    def posttrain_step_done(self, run: Any) -> None:
        """Write the page where enough time has passed since the last write."""
        if self.clock() - self.last >= max(PAUSE, SHARE * self.cost):
            self.write(run.outputs.directory)

    @hookimpl
    def posttrain_run_finished(self, run: Any) -> None:
        """Write the page for the last time."""
        self._end(run)

    @hookimpl
    def posttrain_run_failed(self, run: Any) -> None:
        """Write the page of a run that failed or was interrupted."""
        self._end(run)

    def _end(self, run: Any) -> None:
        if self.always or self.clock() - self.begun >= SHORT:
            self.write(run.outputs.directory)

    def write(self, directory: RunDirectory) -> None:
        """Write the page anew from the run's files."""
        if self.broken:
            return
        began = self.clock()
        try:
            if self.reader is None:
                self.reader = RunReader(directory.path)
            self.reader.refresh()
            write_report([self.reader], directory.path / NAME, f"posttrain report {directory.path}")
        except Exception as error:  # no error of a page may end a run
            self.broken = True
            message = f"report.html is not kept: {error}"
            severity = "info" if isinstance(error, DependencyError) else "warning"
            suggestion = f"posttrain report {directory.path}"
            directory.event("report-failed", severity, message, suggestion=suggestion)
        self.last = self.clock()
        self.cost = self.last - began

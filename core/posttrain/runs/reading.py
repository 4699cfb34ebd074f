"""Reading a run from its folder, during the run or afterwards; nothing is written and no model is loaded."""

from __future__ import annotations

import datetime
import statistics
from pathlib import Path
from typing import Any

from posttrain.errors import CheckpointError
from posttrain.runs.alerts import current_alerts
from posttrain.runs.json_file import event_fault, metrics_fault
from posttrain.runs.owner import Owner, find_owner
from posttrain.runs.record import NAME, read_record
from posttrain.runs.tail import Tail

#: States that are final.
ENDED = ("finished", "failed", "stopped", "interrupted", "lost")
#: Most completions in memory of a run that is followed.
KEPT = 20_000


class RunReader:
    """The contents of a run folder: facts, metrics, events, completions. ``refresh`` reads what is new."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.metrics: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.samples: list[dict[str, Any]] = []
        self._facts: dict[str, Any] = {}
        checks = {"metrics": metrics_fault, "events": event_fault, "samples": metrics_fault}
        self._tails = {name: Tail(self.path / f"{name}.jsonl", check) for name, check in checks.items()}
        if not (self.path / "run.json").is_file() and not (self.path / Owner.RECORD).is_file():
            raise CheckpointError(f"'{self.path}' is not a run directory: it has no run.json.")

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    @property
    def facts(self) -> dict[str, Any]:
        """The content of run.json; empty before the run has begun. Raises CheckpointError where it is damaged."""
        if not self._facts and (self.path / NAME).exists():
            self._facts = read_record(self.path)
        return self._facts

    def refresh(self) -> dict[str, list[dict[str, Any]]]:
        """Read new lines of every file; return them by the kind of line."""
        found = {}
        for kind, tail in self._tails.items():
            lines, kept = tail.new(), getattr(self, kind)
            if tail.restarted:
                kept.clear()
                self._facts = {}
            kept.extend(lines)
            found[kind] = lines
        del self.samples[:-KEPT]
        return found

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def total(self) -> int:
        """Optimiser steps of the whole run; 0 where that is unknown."""
        return int(self.facts.get("total_steps") or 0)

    @property
    def last(self) -> dict[str, Any]:
        """The newest line of metrics; empty before the first step."""
        return self.metrics[-1] if self.metrics else {}

    @property
    def alerts(self) -> list[dict[str, Any]]:
        """Alerts that hold for the run at its present step, oldest first."""
        return current_alerts(self.events)

    def seconds_left(self) -> float | None:
        """Estimate the seconds to the last step from the median of the newest steps; None before the second step."""
        newest = [line["seconds"] for line in self.metrics[-20:] if line.get("seconds")]
        if len(self.metrics) < 2 or not newest or not self.total:
            return None
        return statistics.median(newest) * max(0, self.total - self.step)

    def state(self) -> str:
        """Return the run's state: starting, running, or one of ``ENDED``; "lost" means that its process is gone."""
        ends = ("started", "finished", "failed", "stopped", "interrupted")
        codes = [event["code"] for event in self.events if event.get("code") in ends]
        owner = find_owner(self.path)
        if codes and codes[-1] != "started":
            return codes[-1]
        if owner is not None and owner.alive is not False:
            return "running" if codes else "starting"
        return "lost"

    def seconds(self) -> float:
        """Return the seconds of all steps together."""
        return sum(line.get("seconds") or 0.0 for line in self.metrics)

    def started(self) -> str:
        """Return the start time of the run as run.json has it; empty where that is unknown."""
        text = str(self.facts.get("started", ""))
        try:
            return datetime.datetime.fromisoformat(text).isoformat(" ", "minutes").replace("+00:00", " UTC")
        except ValueError:
            return text

    def summary(self) -> dict[str, Any]:
        """Summarise the run as JSON: state, step, newest metrics, alerts."""
        line = {name: value for name, value in self.last.items() if not isinstance(value, dict)}
        facts = {"run": str(self.path), "method": self.facts.get("method"), "state": self.state()}
        facts |= {"step": self.step, "total": self.total, "seconds_left": self.seconds_left()}
        return facts | {"metrics": line, "alerts": self.alerts, "last_event": (self.events or [{}])[-1]}


def read_run(path: str | Path) -> RunReader:
    """Read a run folder. Raises CheckpointError where it is none."""
    reader = RunReader(path)
    reader.refresh()
    return reader


def find_runs(paths: list[str]) -> list[Path]:
    """Expand folders that contain runs into those runs. Raises CheckpointError for a path without any run."""
    found: list[Path] = []
    for text in paths:
        path = Path(text).expanduser()
        if (path / "run.json").is_file() or (path / Owner.RECORD).is_file():
            found.append(path)
            continue
        inside = sorted(file.parent for file in path.glob("*/run.json"))
        if not inside:
            what = "holds no run" if path.is_dir() else "does not exist"
            raise CheckpointError(f"'{path}' {what}. A run is a folder with a run.json, such as runs/NAME.")
        found += inside
    return list(dict.fromkeys(found))

"""Read a run from its folder, while it goes on elsewhere or afterwards; nothing is written and no model is loaded."""

from __future__ import annotations

import datetime
import json
import statistics
from pathlib import Path
from typing import Any

from posttrain.errors import CheckpointError
from posttrain.runs.alerts import current_alerts
from posttrain.runs.owner import Owner, find_owner
from posttrain.runs.tail import Tail

#: States in which nothing more will come.
ENDED = ("finished", "failed", "stopped", "interrupted", "lost")
#: Completions that are kept in memory of a run that is followed.
KEPT = 20_000


class RunReader:
    """What a run folder says: facts, metrics, events, completions. ``refresh`` reads what is new."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.metrics: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.samples: list[dict[str, Any]] = []
        self._facts: dict[str, Any] = {}
        self._tails = {name: Tail(self.path / f"{name}.jsonl") for name in ("metrics", "events", "samples")}
        if not (self.path / "run.json").is_file() and not (self.path / Owner.RECORD).is_file():
            raise CheckpointError(f"'{self.path}' is not a run directory: it has no run.json.")

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    @property
    def facts(self) -> dict[str, Any]:
        """The content of run.json; empty before the run has begun."""
        if not self._facts:
            try:
                self._facts = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return {}
        return self._facts

    def refresh(self) -> dict[str, list[dict[str, Any]]]:
        """Read on in every file; return what is new by the kind of line."""
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
        """Optimiser steps of the whole run; 0 where that is not known yet."""
        return int(self.facts.get("total_steps") or 0)

    @property
    def last(self) -> dict[str, Any]:
        """The newest line of metrics; empty before the first step."""
        return self.metrics[-1] if self.metrics else {}

    @property
    def alerts(self) -> list[dict[str, Any]]:
        """Alerts that hold for the run as it stands, oldest first."""
        return current_alerts(self.events)

    def seconds_left(self) -> float | None:
        """Estimate the seconds to the last step from the median of the newest steps; None before the second step."""
        newest = [line["seconds"] for line in self.metrics[-20:] if line.get("seconds")]
        if len(self.metrics) < 2 or not newest or not self.total:
            return None
        return statistics.median(newest) * max(0, self.total - self.step)

    def state(self) -> str:
        """Say where the run is: starting, running, or one of ``ENDED``; "lost" is one whose process is gone."""
        ends = ("started", "finished", "failed", "stopped", "interrupted")
        codes = [event["code"] for event in self.events if event.get("code") in ends]
        owner = find_owner(self.path)
        if codes and codes[-1] != "started":
            return codes[-1]
        if owner is not None and owner.alive is not False:
            return "running" if codes else "starting"
        return "lost"

    def seconds(self) -> float:
        """Return the seconds that all steps took together."""
        return sum(line.get("seconds") or 0.0 for line in self.metrics)

    def started(self) -> str:
        """Return when the run began, as run.json writes it; empty where that is not known."""
        text = str(self.facts.get("started", ""))
        try:
            return datetime.datetime.fromisoformat(text).isoformat(" ", "minutes").replace("+00:00", " UTC")
        except ValueError:
            return text

    def summary(self) -> dict[str, Any]:
        """Sum the run up as JSON: state, step, newest metrics, alerts."""
        line = {name: value for name, value in self.last.items() if not isinstance(value, dict)}
        facts = {"run": str(self.path), "method": self.facts.get("method"), "state": self.state()}
        facts |= {"step": self.step, "total": self.total, "seconds_left": self.seconds_left()}
        return facts | {"metrics": line, "alerts": self.alerts, "last_event": (self.events or [{}])[-1]}


def read_run(path: str | Path) -> RunReader:
    """Read everything that a run folder holds now. Raises CheckpointError where it is none."""
    reader = RunReader(path)
    reader.refresh()
    return reader


def find_runs(paths: list[str]) -> list[Path]:
    """Expand folders that hold runs into those runs. Raises CheckpointError for a path that is and holds no run."""
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

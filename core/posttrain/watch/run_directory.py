"""The run directory: the interface between a run and everything outside it. Only rank 0 writes."""

from __future__ import annotations

import datetime
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from posttrain.errors import CheckpointError, SettingsError

#: Files whose lines carry a step, cut back when a run is resumed from an earlier one.
STEPPED = ("metrics.jsonl", "samples.jsonl", "ledger.jsonl")


def new_run_directory(method: str) -> str:
    """Where a run of ``method`` that starts now is written when nobody says."""
    return f"runs/{Path(method).name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


class RunDirectory:
    """``run.json``, ``metrics.jsonl``, ``events.jsonl``, ``samples.jsonl``, ``ledger.jsonl``, ``checkpoints/``,
    ``model/``."""

    def __init__(self, path: str | Path, writes: bool = True):
        self.path = Path(path)
        self.writes = writes

    @property
    def model(self) -> Path:
        """Where the final model is saved."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """Where ``step-N`` folders are."""
        return self.path / "checkpoints"

    def create(self, facts: dict[str, Any], overwrite: bool) -> None:
        """Begin a new run. Raises SettingsError where there is one already and ``overwrite`` is off."""
        if not self.writes:
            return
        if (self.path / "run.json").exists() and not overwrite:
            raise SettingsError(
                f"'{self.path}' holds a run already. Continue it with: posttrain resume {self.path}  "
                "or replace it with --overwrite."
            )
        if self.path.exists() and not (self.path / "run.json").exists() and any(self.path.iterdir()):
            raise SettingsError(f"'{self.path}' is not empty and not a run directory. Choose another --output.")
        if self.path.exists():
            shutil.rmtree(self.path)
        self.checkpoints.mkdir(parents=True)
        self._replace("run.json", facts)

    def facts(self) -> dict[str, Any]:
        """What ``run.json`` says. Raises CheckpointError where there is none."""
        file = self.path / "run.json"
        if not file.is_file():
            raise CheckpointError(f"'{self.path}' is not a run directory: it has no run.json.")
        return json.loads(file.read_text(encoding="utf-8"))

    def update(self, **facts: Any) -> None:
        """Add facts to ``run.json``."""
        if self.writes:
            self._replace("run.json", self.facts() | facts)

    def metrics(self, line: dict[str, Any]) -> None:
        """One line a step."""
        self._append("metrics.jsonl", line)

    def sample(self, line: dict[str, Any]) -> None:
        """One sampled completion."""
        self._append("samples.jsonl", line)

    def ledger(self, line: dict[str, Any]) -> None:
        """What became of some prompts."""
        self._append("ledger.jsonl", line)

    def event(
        self, code: str, severity: str, message: str, evidence: Any = None, suggestion: str = ""
    ) -> dict[str, Any]:
        """Record that something happened: started, alert, checkpoint, finished, failed, ..."""
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        line = {"time": time, "code": code, "severity": severity, "message": message}
        line |= {"evidence": evidence, "suggestion": suggestion}
        self._append("events.jsonl", line)
        return line

    def rewind(self, step: int) -> None:
        """Forget lines of steps after ``step``: they will be made again."""
        for name in STEPPED if self.writes else ():
            file = self.path / name
            if file.is_file():
                lines = file.read_text(encoding="utf-8").splitlines()
                kept = [line for line in map(_complete, lines) if line is not None and line["step"] <= step]
                file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines of ``metrics.jsonl``."""
        file = self.path / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return [line for line in map(_complete, lines) if line is not None]

    def last_event(self) -> dict[str, Any]:
        """The last line of ``events.jsonl``; empty where there is none."""
        file = self.path / "events.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return next((event for event in map(_complete, reversed(lines)) if event is not None), {})

    def _append(self, name: str, line: dict[str, Any]) -> None:
        if self.writes:
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(_finite(line), ensure_ascii=False) + "\n")

    def _replace(self, name: str, value: dict[str, Any]) -> None:
        aside = self.path / f".{name}.tmp"
        aside.write_text(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
        os.replace(aside, self.path / name)


def _complete(line: str) -> dict[str, Any] | None:
    """A line that was written whole; a killed run may leave half of one at the end."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _finite(value: Any) -> Any:
    """JSON has no NaN: numbers that are not finite become null, and the alert beside them says what they were."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value

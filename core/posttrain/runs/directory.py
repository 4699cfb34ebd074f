"""The run directory: the interface between a run and everything outside it. Only rank 0 writes."""

from __future__ import annotations

import datetime
import json
import math
import re
from pathlib import Path
from typing import Any

from posttrain.errors import SettingsError
from posttrain.runs.alerts import current_alerts
from posttrain.runs.control import CONTROL
from posttrain.runs.durable import append_text, cut_half_line, recover_folder, remove, replace_text, writing
from posttrain.runs.json_file import event_fault, metrics_fault, read_lines
from posttrain.runs.owner import Owner
from posttrain.runs.record import read_record
from posttrain.settings.secret_options import redacted

#: Files whose lines have a step; resuming from an earlier step cuts them back.
STEPPED = ("metrics.jsonl", "samples.jsonl", "ledger.jsonl", "episodes.jsonl")
#: Everything that a run writes into its directory and ``--overwrite`` removes; run.json is replaced.
WRITTEN = (
    *STEPPED,
    "events.jsonl",
    "report.html",
    "tensorboard",
    "wandb",
    "model",
    ".model.tmp",
    ".model.old",
    *CONTROL,
)
#: Files that a run killed before its first step leaves in its directory.
BEGINNINGS = (Owner.FILES, f".{Owner.FILES}", ".run.json.tmp")


def new_run_directory(method: str) -> str:
    """Return the default folder of a run of ``method`` that starts now."""
    return f"runs/{Path(method).name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


class RunDirectory:
    """``run.json``, ``metrics.jsonl``, ``events.jsonl``, ``samples.jsonl``, ``ledger.jsonl``, ``checkpoints/``,
    ``model/``."""

    def __init__(self, path: str | Path, writes: bool = True):
        self.path = Path(path)
        self.writes = writes
        self.last_sample: dict[str, Any] | None = None
        """The newest completion that was written."""
        self._owner: Owner | None = None

    @property
    def model(self) -> Path:
        """Folder of the final model."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """Folder of the ``step-N`` folders."""
        return self.path / "checkpoints"

    def newest_checkpoint(self) -> Path | None:
        """Return the newest complete checkpoint; None where there is none."""
        found = [path for path in self.checkpoints.glob("step-*") if is_checkpoint(path)]
        return max(found, key=step_of, default=None)

    def claim(self, take_over: bool = False) -> None:
        """Create the directory and own it, before anything is read for the run.

        Raises SettingsError where it cannot be created or written, or where another process owns it.
        """
        if self.writes:
            self._owner = Owner.claim(self.path, take_over)

    def release(self) -> None:
        """Give up the directory; one that was created for a run that never began is deleted."""
        if self._owner is not None:
            self._owner.release()
            self._owner = None

    def check_free(self, overwrite: bool) -> None:
        """Raise SettingsError where the directory has another run, or files that are not a run's."""
        if not self.writes or not self.path.exists():
            return
        is_run = (self.path / "run.json").exists()
        if is_run and not overwrite:
            raise SettingsError(
                f"'{self.path}' holds a run already. Continue it with: posttrain resume {self.path}  "
                "or replace it with --overwrite."
            )
        if not is_run and any(not path.name.startswith(BEGINNINGS) for path in self.path.iterdir()):
            raise SettingsError(f"'{self.path}' is not empty and not a run directory. Choose another --output.")

    def create(self, facts: dict[str, Any]) -> None:
        """Begin a new run. Files of an earlier run are removed, all other files stay."""
        if not self.writes:
            return
        for name in WRITTEN:
            remove(self.path / name)
        if self.checkpoints.is_symlink():
            remove(self.checkpoints)
        for path in self.checkpoints.glob("*"):
            if re.fullmatch(r"step-\d+(\.damaged)?|\.step-.*", path.name):
                remove(path)
        self._replace("run.json", facts)
        self.checkpoints.mkdir(exist_ok=True)

    def facts(self) -> dict[str, Any]:
        """Read ``run.json``. Raises CheckpointError where there is none, or where it is damaged."""
        return read_record(self.path)

    def update(self, **facts: Any) -> None:
        """Add facts to ``run.json``."""
        if self.writes:
            self._replace("run.json", self.facts() | facts)

    def metrics(self, line: dict[str, Any]) -> None:
        """Append a step's line to ``metrics.jsonl``."""
        self._append("metrics.jsonl", line)

    def sample(self, line: dict[str, Any]) -> None:
        """Append a sampled completion to ``samples.jsonl``."""
        self.last_sample = line
        self._append("samples.jsonl", line)

    def episode(self, line: dict[str, Any]) -> None:
        """Append an episode of several turns to ``episodes.jsonl``."""
        self._append("episodes.jsonl", line)

    def ledger(self, line: dict[str, Any]) -> None:
        """Append the outcome of some prompts to ``ledger.jsonl``."""
        self._append("ledger.jsonl", line)

    def event(
        self,
        code: str,
        severity: str,
        message: str,
        evidence: Any = None,
        suggestion: str = "",
        kind: str = "event",
    ) -> dict[str, Any]:
        """Append an event to ``events.jsonl``: started, checkpoint, finished, failed, ..."""
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        line = {"time": time, "kind": kind, "code": code, "severity": severity, "message": message}
        line = redacted(line | {"evidence": evidence, "suggestion": suggestion})
        self._append("events.jsonl", line)
        return line

    def alert(
        self, code: str, severity: str, message: str, evidence: dict[str, Any], suggestion: str
    ) -> dict[str, Any]:
        """Append an alert to ``events.jsonl``; ``evidence`` has the step and the numbers that support it."""
        return self.event(code, severity, message, evidence, suggestion, kind="alert")

    def recover(self) -> None:
        """Undo what a kill has cut off: the replacement of a folder, and half a line at the end of a file."""
        for old in self.checkpoints.glob(".step-*.old") if self.writes else ():
            recover_folder(old.with_name(old.name.removeprefix(".").removesuffix(".old")))
        for name in (*STEPPED, "events.jsonl") if self.writes else ():
            with writing(f"'{self.path / name}'", "Make room, and resume again."):
                cut_half_line(self.path / name)

    def rewind(self, step: int) -> None:
        """Remove lines of steps after ``step``, which will be repeated. Raises CheckpointError for a damaged line."""
        for name in STEPPED if self.writes else ():
            file = self.path / name
            lines = list(read_lines(file, metrics_fault))
            kept = [text + "\n" for text, facts in lines if facts["step"] <= step]
            if len(kept) < len(lines):
                with writing(f"'{file}'", "Make room, and resume again."):
                    replace_text(file, "".join(kept))

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return all lines of ``metrics.jsonl``. Raises CheckpointError for a damaged one."""
        return [line for _, line in read_lines(self.path / "metrics.jsonl", metrics_fault)]

    def events(self) -> list[dict[str, Any]]:
        """Return the lines of ``events.jsonl``. Raises CheckpointError for a damaged one."""
        return [line for _, line in read_lines(self.path / "events.jsonl", event_fault)]

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that hold for the run at its present step, oldest first (see ``alerts.current_alerts``)."""
        return current_alerts(self.events())

    def last_event(self) -> dict[str, Any]:
        """Return the last line of ``events.jsonl``; empty where there is none."""
        return next(reversed(self.events()), {})

    def is_finished(self) -> bool:
        """Tell whether the run's last start has ended with a saved model."""
        codes = [event["code"] for event in self.events() if event["code"] in ("started", "finished")]
        return codes[-1:] == ["finished"] and self.model.is_dir()

    def evaluations(self, step: int) -> list[dict[str, Any]]:
        """Return the evaluations up to ``step``; the later one where a kill made one repeat."""
        found = [event["evidence"] for event in self.events() if event["code"] == "evaluation"]
        return [facts for _, facts in sorted({f["step"]: f for f in found if f["step"] <= step}.items())]

    def _append(self, name: str, line: dict[str, Any]) -> None:
        if self.writes:
            advice = f"Make room, and go on with: posttrain resume {self.path}"
            with writing(f"'{self.path / name}'", advice):
                append_text(self.path / name, json.dumps(redacted(_finite(line)), ensure_ascii=False) + "\n")

    def _replace(self, name: str, value: dict[str, Any]) -> None:
        text = json.dumps(redacted(value), indent=2, ensure_ascii=False, default=str) + "\n"
        with writing(f"'{self.path / name}'", "Make room, or choose another --output."):
            replace_text(self.path / name, text)


def is_checkpoint(path: Path) -> bool:
    """Tell whether a folder has the name and the last file of a checkpoint."""
    return re.fullmatch(r"step-\d+", path.name) is not None and (path / "state.json").is_file()


def step_of(path: Path) -> int:
    """Return N of ``step-N``."""
    return int(path.name.partition("-")[2])


def _finite(value: Any) -> Any:
    """Replace numbers that are not finite by null, since JSON has no NaN; an alert reports them."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value

"""The run directory: the interface between a run and everything outside it. Only rank 0 writes."""

from __future__ import annotations

import datetime
import json
import math
import re
from pathlib import Path
from typing import Any

from posttrain.errors import CheckpointError, SettingsError
from posttrain.runs.alerts import current_alerts
from posttrain.runs.control import CONTROL
from posttrain.runs.durable import recover_folder, remove, replace_text, writing
from posttrain.runs.owner import Owner
from posttrain.settings.secret_options import redacted

#: Files whose lines carry a step, cut back when a run is resumed from an earlier one.
STEPPED = ("metrics.jsonl", "samples.jsonl", "ledger.jsonl", "episodes.jsonl")
#: All that a run writes into its directory, and all that ``--overwrite`` removes; run.json is replaced.
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
#: What a run that was killed before it began leaves in its directory.
BEGINNINGS = (Owner.FILES, f".{Owner.FILES}", ".run.json.tmp")


def new_run_directory(method: str) -> str:
    """Where a run of ``method`` that starts now is written when nobody says."""
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
        """Where the final model is saved."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """Where ``step-N`` folders are."""
        return self.path / "checkpoints"

    def newest_checkpoint(self) -> Path | None:
        """Return the newest complete checkpoint; None where there is none."""
        found = [path for path in self.checkpoints.glob("step-*") if is_checkpoint(path)]
        return max(found, key=step_of, default=None)

    def claim(self, take_over: bool = False) -> None:
        """Make the directory and become its owner, before anything is read for the run.

        Raises SettingsError where it cannot be made or written, or where another process owns it.
        """
        if self.writes:
            self._owner = Owner.claim(self.path, take_over)

    def release(self) -> None:
        """Give the directory up; one that was made for a run that never began goes."""
        if self._owner is not None:
            self._owner.release()
            self._owner = None

    def check_free(self, overwrite: bool) -> None:
        """Raise SettingsError where a new run would meet another one, or what is no run."""
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
        """Begin a new run. Of one that was there before, what a run writes goes, and everything else stays."""
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
        self.last_sample = line
        self._append("samples.jsonl", line)

    def episode(self, line: dict[str, Any]) -> None:
        """Append an episode of several turns to ``episodes.jsonl``."""
        self._append("episodes.jsonl", line)

    def ledger(self, line: dict[str, Any]) -> None:
        """What became of some prompts."""
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
        """Record that something happened: started, checkpoint, finished, failed, ..."""
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        line = {"time": time, "kind": kind, "code": code, "severity": severity, "message": message}
        line = redacted(line | {"evidence": evidence, "suggestion": suggestion})
        self._append("events.jsonl", line)
        return line

    def alert(
        self, code: str, severity: str, message: str, evidence: dict[str, Any], suggestion: str
    ) -> dict[str, Any]:
        """Record that something looks wrong; ``evidence`` holds the step and the numbers that say so."""
        return self.event(code, severity, message, evidence, suggestion, kind="alert")

    def recover(self) -> None:
        """Put older folders back whose successors a kill has kept from their places."""
        for old in self.checkpoints.glob(".step-*.old") if self.writes else ():
            recover_folder(old.with_name(old.name.removeprefix(".").removesuffix(".old")))

    def rewind(self, step: int) -> None:
        """Forget lines of steps after ``step``, which will be made again, and lines that a kill has cut."""
        for name in (*STEPPED, "events.jsonl") if self.writes else ():
            file = self.path / name
            if file.is_file():
                text = file.read_text(encoding="utf-8", errors="replace")
                whole = [(line, facts) for line in text.splitlines() if (facts := _complete(line)) is not None]
                kept = [line + "\n" for line, facts in whole if name not in STEPPED or facts["step"] <= step]
                if "".join(kept) != text:
                    with writing(f"'{file}'", "Make room, and resume again."):
                        replace_text(file, "".join(kept))

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines of ``metrics.jsonl``."""
        file = self.path / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return [line for line in map(_complete, lines) if line is not None]

    def events(self) -> list[dict[str, Any]]:
        """Return the lines of ``events.jsonl``."""
        file = self.path / "events.jsonl"
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
        return [event for event in map(_complete, lines) if event is not None]

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that hold for the run as it stands, oldest first (see ``alerts.current_alerts``)."""
        return current_alerts(self.events())

    def last_event(self) -> dict[str, Any]:
        """The last line of ``events.jsonl``; empty where there is none."""
        return next(reversed(self.events()), {})

    def is_finished(self) -> bool:
        """Tell whether the run's last start has come to its end, its model saved."""
        codes = [event["code"] for event in self.events() if event["code"] in ("started", "finished")]
        return codes[-1:] == ["finished"] and self.model.is_dir()

    def evaluations(self, step: int) -> list[dict[str, Any]]:
        """Return the evaluations up to ``step``; of one that was made again after a kill, the later."""
        found = [event["evidence"] for event in self.events() if event["code"] == "evaluation"]
        return [facts for _, facts in sorted({f["step"]: f for f in found if f["step"] <= step}.items())]

    def _append(self, name: str, line: dict[str, Any]) -> None:
        if self.writes:
            advice = f"Make room, and go on with: posttrain resume {self.path}"
            with writing(f"'{self.path / name}'", advice), (self.path / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(redacted(_finite(line)), ensure_ascii=False) + "\n")

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


def _complete(line: str) -> dict[str, Any] | None:
    """A line that was written whole; a killed run may leave half of one at the end."""
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _finite(value: Any) -> Any:
    """JSON has no NaN: numbers that are not finite become null, and the alert beside them says what they were."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value

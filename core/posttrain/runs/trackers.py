"""Trackers: TensorBoard, Trackio, Weights & Biases and MLflow, through accelerate's tracker layer."""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from posttrain.contract.hookspecs import hookimpl
from posttrain.errors import DependencyError, SettingsError
from posttrain.runs.metrics import is_number
from posttrain.runs.report.completions import text_of
from posttrain.runs.tail import Tail
from posttrain.runs.terminal.words import alert_words

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

#: Name -> module that it needs. The name is also that of its extra.
TRACKERS = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb", "mlflow": "mlflow"}
PROJECT = "posttrain"
COLUMNS = ("step", "prompt", "completion", "reward", "finished")
#: Seconds between two tables of completions, and newest completions of a table.
PAUSE, ROWS = 30.0, 100
#: Trackers may take this share of a run's time, and so many seconds at its start.
SHARE, CREDIT = 0.005, 0.1


def check_tracker(name: str) -> None:
    """Raise SettingsError for a tracker that is unknown, DependencyError for one whose package is not installed."""
    if name not in TRACKERS:
        raise SettingsError(f"No tracker is called '{name}'. Known: {', '.join(TRACKERS)}.")
    if importlib.util.find_spec(TRACKERS[name]) is None:
        raise DependencyError(
            f"Tracker '{name}' needs the package {TRACKERS[name]}. Install it with: pip install 'posttrain[{name}]'"
        )


class Tracker:
    """An observer that passes on options, metrics, alerts and completions. A tracker's errors never end the run.

    Where steps are so short that reporting each would cost more than ``SHARE``, some are left out; never the last.
    """

    def __init__(self, name: str):
        self.name = name
        self.inner: GeneralTracker | None = None
        self.broken = False
        self._told = self._begun = self._spent = 0.0
        self._left_out: tuple[int, dict[str, Any]] | None = None
        """The newest step, where the tracker has not got it."""
        self._rows: list[list[Any]] = []
        self._tail: Tail | None = None
        self._run: Any = None

    @hookimpl
    def posttrain_run_started(self, run: Any) -> None:
        """Start a run of the tracker, with the options of this one."""
        self._run = run
        self._tail = Tail(run.path / "samples.jsonl")
        self._begun = time.monotonic()
        self._guarded(self._start)

    @hookimpl
    def posttrain_step_done(self, step: int, metrics: dict[str, Any]) -> None:
        """Pass on the numbers of a step; completions now and then."""
        begun = time.monotonic()
        self._left_out = (step, metrics)
        if self._spent > CREDIT + SHARE * (begun - self._begun):
            return
        self._guarded(self._log)
        if begun - self._told >= PAUSE:
            self._guarded(lambda: self._table(step))
        self._spent += time.monotonic() - begun

    @hookimpl
    def posttrain_alert(self, event: dict[str, Any]) -> None:
        """Pass on an alert."""
        self._guarded(lambda: _alert(self.name, self.inner, event, self._run.step))

    @hookimpl
    def posttrain_run_finished(self, run: Any) -> None:
        """Pass on the last completions, and close the tracker."""
        self._end()

    @hookimpl
    def posttrain_run_failed(self, run: Any) -> None:
        """Close the tracker, however the run ended."""
        self._end()

    def _start(self) -> None:
        _prepare_accelerate()
        self.inner = _MAKERS[self.name](self._run.path)
        self.inner.main_process_only = False  # only the first process calls observers
        self.inner.start()
        settings = self._run.outputs.directory.facts()
        values = {"method": settings["method"]} | settings["settings"] | settings["options"]
        self.inner.store_init_configuration({name: _plain(value) for name, value in values.items()})

    def _log(self) -> None:
        if self.inner is not None and self._left_out is not None:
            step, metrics = self._left_out
            values = {name: value for name, value in metrics.items() if is_number(value) and name != "step"}
            self._left_out = None
            self.inner.log(values, step=step)

    def _table(self, step: int) -> None:
        assert self._tail is not None  # set with the run
        self._told = time.monotonic()
        new = self._tail.new()
        if new:
            self._rows = [*self._rows, *map(_row, new)][-ROWS:]
            _log_table(self.name, self.inner, self._rows, step)

    def _end(self) -> None:
        if self.inner is not None:
            self._guarded(self._log)
            self._guarded(lambda: self._table(self._run.step))
            self._guarded(self.inner.finish)  # type: ignore[arg-type]
            self.inner = None

    def _guarded(self, act: Callable[[], None]) -> None:
        if self.broken:
            return
        try:
            act()
        except Exception as error:  # an unreachable server, a full disk of the tracker: not worth ending a run
            self.broken = True
            first = (str(error).splitlines() or [""])[0]
            message = f"tracker '{self.name}' is told nothing more: {type(error).__name__}: {first}"
            self._run.outputs.directory.event("tracker-failed", "warning", message, evidence={"tracker": self.name})
            self._run.outputs.say(message)


def _prepare_accelerate() -> None:
    """Set the state that accelerate's messages need, without letting it change the number of threads."""
    from accelerate import PartialState

    threads = torch.get_num_threads()
    PartialState()
    torch.set_num_threads(threads)


def _tensorboard(path: Path) -> GeneralTracker:
    from accelerate.tracking import TensorBoardTracker

    return TensorBoardTracker("tensorboard", logging_dir=path)


def _trackio(path: Path) -> GeneralTracker:
    from accelerate.tracking import TrackioTracker

    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    return TrackioTracker(project, name=path.resolve().name, resume="allow", embed=False)


def _wandb(path: Path) -> GeneralTracker:
    from accelerate.tracking import WandBTracker

    project = os.environ.get("WANDB_PROJECT", PROJECT)
    return WandBTracker(project, name=path.resolve().name, dir=str(path))


def _mlflow(path: Path) -> GeneralTracker:
    from accelerate.tracking import MLflowTracker

    return MLflowTracker(experiment_name=PROJECT, run_name=path.resolve().name)


_MAKERS = {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb, "mlflow": _mlflow}


def _log_table(name: str, inner: Any, rows: list[list[Any]], step: int) -> None:
    """Pass on completions as the tracker's kind of table."""
    if name == "wandb":
        inner.log_table("completions", columns=list(COLUMNS), data=rows, step=step)
    elif name == "trackio":
        import trackio

        inner.log({"completions": trackio.Table(columns=list(COLUMNS), data=rows)}, step=step)
    elif name == "mlflow":
        import mlflow

        columns = {column: [row[i] for row in rows] for i, column in enumerate(COLUMNS)}
        mlflow.log_table(columns, artifact_file=f"completions/step-{step}.json")
    else:
        inner.log({"completions": _markdown(rows)}, step=step)


def _alert(name: str, inner: Any, event: dict[str, Any], step: int) -> None:
    if name == "wandb":
        inner.tracker.alert(title=str(event.get("code")), text=alert_words(event))
    elif name == "trackio":
        import trackio

        trackio.alert(title=str(event.get("code")), text=alert_words(event))
    elif name == "mlflow":
        import mlflow

        mlflow.set_tag(f"alert.{event.get('code')}", f"step {step}: {alert_words(event)}"[:500])
    else:
        inner.log({"alerts": alert_words(event)}, step=step)


def _markdown(rows: list[list[Any]]) -> str:
    """Format a table for TensorBoard, which shows text as Markdown."""
    lines = [list(COLUMNS), ["---"] * len(COLUMNS), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", "<br>") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _row(sample: dict[str, Any]) -> list[Any]:
    prompt = text_of(sample.get("prompt"))
    reward = sample.get("reward")
    number = float(reward) if is_number(reward) else None  # type: ignore[arg-type]  # a number
    return [sample.get("step"), prompt, str(sample.get("completion", "")), number, bool(sample.get("finished"))]


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)

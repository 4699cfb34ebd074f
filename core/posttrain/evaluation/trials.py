"""One trial of a comparison: a method with its options and a seed, trained and measured in separate processes.

All files of a trial are in its folder, so that a killed comparison continues: a measured trial is read, an interrupted
training is resumed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.errors import RunFailed
from posttrain.evaluation.result import RESULT
from posttrain.runs.directory import RunDirectory, is_checkpoint
from posttrain.runs.json_file import read_object
from posttrain.servers.parent import end_with_parent

#: Seconds between two checks for a new checkpoint.
_PAUSE = 0.5
_COMMAND = (sys.executable, "-m", "posttrain.cli.main")


@dataclass(frozen=True)
class Candidate:
    """A method and the options in which it differs from the others."""

    method: str
    options: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name in the table: ``dpo,beta=0.1``."""
        return ",".join([self.method, *(f"{key}={value}" for key, value in self.options.items())])

    @property
    def words(self) -> list[str]:
        """Arguments of its training command."""
        return [self.method, *(f"--{key}={value}" for key, value in self.options.items())]


@dataclass(frozen=True)
class Trial:
    """One candidate with one seed, in its folder."""

    candidate: Candidate
    seed: int
    folder: Path
    training: list[str]
    """Training flags of all trials."""
    measuring: list[str]
    """Evaluation flags of all trials."""
    where: Path = Path()
    """Folder to which file names are relative; Ray's workers run in another one."""
    steps: int = 0
    """Steps of a full training, where trials may be ended early."""
    rungs: tuple[int, ...] = ()
    """Steps after which a bad trial may be ended."""

    @property
    def run(self) -> Path:
        """Folder of its training run."""
        return self.folder / "run"

    @property
    def result(self) -> Path:
        """Folder of its final evaluation."""
        return self.folder / "evaluation"


def run_trial(trial: Trial, report: Callable[[int, dict[str, Any]], None]) -> dict[str, Any]:
    """Train and measure; ``report`` gets each rung's step and figures and may end the trial by raising.

    Return the figures of the final model, with the seconds of training. Raises RunFailed with the reason.
    """
    done = trial.result / RESULT
    if not done.is_file():
        trial.folder.mkdir(parents=True, exist_ok=True)
        for step in _train(trial):
            place = trial.folder / f"evaluation-{step}"
            if not (place / RESULT).is_file():
                _call(_measure(trial, trial.run / "checkpoints" / f"step-{step}" / "model", place), place.name, trial)
            report(step, _read(place / RESULT))
        _call(_measure(trial, trial.run / "model", trial.result), "evaluation", trial)
    return _read(done) | {"seconds": _seconds(trial.run)}


def _train(trial: Trial) -> Iterator[int]:
    """Train to the end, or resume; yield each rung as soon as its checkpoint exists."""
    waiting = list(trial.rungs)

    def reached() -> Iterator[int]:
        while waiting and is_checkpoint(trial.run / "checkpoints" / f"step-{waiting[0]}"):
            yield waiting.pop(0)

    if (trial.run / "model").is_dir():
        yield from reached()
        return
    begun = any(is_checkpoint(one) for one in (trial.run / "checkpoints").glob("step-*"))
    words = ["resume", str(trial.run)]
    if not begun:
        words = ["train", *trial.candidate.words, *trial.training, f"--seed={trial.seed}", f"--output={trial.run}"]
        words += ["--overwrite"]
        if trial.rungs:
            words += [f"--steps={trial.steps}", f"--save-every={trial.rungs[0]}", "--save-total=1000"]
    with (
        (trial.folder / "train.log").open("a", encoding="utf-8") as log,
        _process([*words, "--progress=quiet"], log, trial.where) as process,
    ):
        while process.poll() is None:
            yield from reached()
            time.sleep(_PAUSE)
    yield from reached()  # a short training passes its last rungs, or all, within one pause
    if process.returncode:
        raise RunFailed(f"{trial.candidate.name} with seed {trial.seed} failed: {_last(trial.folder / 'train.log')}")


def _measure(trial: Trial, model: Path, place: Path) -> list[str]:
    return ["evaluate", str(model), *trial.measuring, f"--output={place}", "--json"]


def _call(words: list[str], name: str, trial: Trial) -> None:
    log = trial.folder / f"{name}.log"
    with log.open("w", encoding="utf-8") as file, _process(words, file, trial.where) as process:
        process.wait()
    if process.returncode:
        raise RunFailed(f"{trial.candidate.name} with seed {trial.seed} was not measured: {_last(log)}")


@contextmanager
def _process(words: list[str], log: Any, where: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command of posttrain; it ends with its starter, and at the latest with this context."""
    process = subprocess.Popen(
        [*_COMMAND, *words], stdout=log, stderr=subprocess.STDOUT, cwd=where, preexec_fn=end_with_parent
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _last(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"{lines[-1] if lines else 'it said nothing'} (all: {log})"


def _read(file: Path) -> dict[str, Any]:
    return read_object(file, RunFailed, "Delete it: the same command makes it again.")


def _seconds(run: Path) -> float:
    return sum(line.get("seconds") or 0.0 for line in RunDirectory(run, writes=False).read_metrics())

"""Tools by which an agent reads and controls runs: functions of plain values that return JSON. Nothing here trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.errors import CheckpointError
from posttrain.runs.control import CHECKPOINT, STOP, ask
from posttrain.runs.explanation import explain
from posttrain.runs.metrics import describe_metric, is_number, is_online, key_metrics, metric_notes
from posttrain.runs.reading import RunReader, read_run
from posttrain.runs.report.completions import readable
from posttrain.runs.report.differences import differences, flat_configuration
from posttrain.runs.report.series import curves
from posttrain.runs.verdict import judge

#: Most numbers of one answer, so that it fits an agent's context.
POINTS = 2_000


class RunTools:
    """The runs in some folders, by name. Names outside of them are refused."""

    def __init__(self, folders: list[Path]):
        self.folders = folders

    def reading(self) -> list[Callable[..., Any]]:
        """Return the tools that only read."""
        return [self.list_runs, self.metrics, self.alerts, self.samples, self.compare, self.verdict, self.explain]

    def controlling(self) -> list[Callable[..., Any]]:
        """Return the tools that change what a run does."""
        return [self.stop, self.checkpoint]

    def list_runs(self) -> list[dict[str, Any]]:
        """List all runs with their state, step, key metrics and the codes of their alerts.

        States: starting, running, finished, failed, stopped (by an alert), interrupted (saved, can be resumed), lost
        (the process is gone without a word).
        """
        return [self._listed(name, path) for name, path in self._paths().items()]

    def metrics(self, run: str, names: list[str] | None = None, last: int | None = None) -> dict[str, Any]:
        """Return metrics of a run over its steps, each with first, last, lowest and highest value and what it means.

        ``names``: only these; without them the loss and the key metrics of the method. ``last``: only so many of the
        newest steps. Long curves are thinned, their extremes are kept. ``available`` lists all names.
        """
        reader = self._read(run)
        lines = reader.metrics if last is None else reader.metrics[-max(1, last) :]
        found = curves(lines, 10**9)
        wanted = names or ["loss", *key_metrics(reader.last)]
        unknown = [name for name in wanted if name not in found]
        if unknown and names:
            raise CheckpointError(f"Run '{run}' has no metric {', '.join(unknown)}. It has: {', '.join(found)}.")
        kept = [{name: line.get(name) for name in ("step", *wanted)} for line in lines]
        notes, online = metric_notes(str(reader.facts.get("method", ""))), is_online(reader.last)
        thinned = curves(kept, POINTS)
        shown = {
            name: _described(name, found[name], thinned[name], notes, online) for name in wanted if name in thinned
        }
        return {"run": run, "metrics": shown, "available": sorted(found)}

    def alerts(self, run: str) -> list[dict[str, Any]]:
        """Return the alerts of a run, oldest first: code, severity, message, evidence, and what to change first."""
        return self._read(run).alerts

    def samples(
        self, run: str, step: int | None = None, contains: str | None = None, last: int = 10
    ) -> list[dict[str, Any]]:
        """Return completions of a run with prompt, reward and the parts of the reward, newest last.

        ``step``: only of this step. ``contains``: only of prompts that contain this text. ``last``: so many at most.
        """
        found = self._read(run).samples
        if step is not None:
            found = [sample for sample in found if sample.get("step") == step]
        if contains is not None:
            found = [sample for sample in found if contains in str(sample.get("prompt"))]
        return found[-min(max(1, last), 100) :]

    def compare(self, runs: list[str]) -> dict[str, Any]:
        """Compare runs: options that differ, and of each run state, step and last value of every key metric."""
        readers = [self._read(run) for run in runs]
        rows = differences([flat_configuration(reader.facts) for reader in readers])
        shown = {row[0]: dict(zip(runs, map(readable, row[1:]), strict=True)) for row in rows}
        listed = [self._listed(run, reader.path) for run, reader in zip(runs, readers, strict=True)]
        return {"differences": shown, "runs": listed}

    def verdict(self, run: str) -> dict[str, Any]:
        """Judge a run: its state (healthy, suspicious, failed, finished, interrupted), why, and what to do first."""
        return judge(self._path(run)).facts() | {"run": run}

    def explain(self, run: str) -> dict[str, Any]:
        """Explain a run: why it ended, everything that looks wrong, what to change first, how its metrics moved."""
        return explain(self._path(run)) | {"run": run}

    def stop(self, run: str) -> str:
        """Ask a run to end after its step; it saves a checkpoint and can be resumed."""
        return ask(self._path(run), STOP)

    def checkpoint(self, run: str) -> str:
        """Ask a run to save a checkpoint after its step, and to go on."""
        return ask(self._path(run), CHECKPOINT)

    def _paths(self) -> dict[str, Path]:
        """Find all runs: a folder that is one, and those inside a folder, by a unique name."""
        found: dict[str, Path] = {}
        for folder in self.folders:
            files = [folder / "run.json", *sorted(folder.glob("*/run.json")), *sorted(folder.glob("*/*/run.json"))]
            for path in (file.parent for file in files if file.is_file()):
                name = path.resolve().name if path == folder else str(path.relative_to(folder))
                found[name if name not in found else str(path)] = path
        return found

    def _path(self, run: str) -> Path:
        paths = self._paths()
        if run not in paths:
            raise CheckpointError(f"There is no run '{run}'. Runs: {', '.join(paths) or 'none'}.")
        return paths[run]

    def _read(self, run: str) -> RunReader:
        return read_run(self._path(run))

    def _listed(self, name: str, path: Path) -> dict[str, Any]:
        reader = read_run(path)
        line = {key: reader.last[key] for key in ("loss", *key_metrics(reader.last)) if is_number(reader.last.get(key))}
        facts = {"run": name, "method": reader.facts.get("method"), "state": reader.state(), "step": reader.step}
        facts |= {"total": reader.total, "seconds_left": reader.seconds_left(), "started": reader.started()}
        return facts | {"metrics": line, "alerts": list(dict.fromkeys(one["code"] for one in reader.alerts))}


def _described(
    name: str, whole: list[list[float]], shown: list[list[float]], notes: dict[str, str], online: bool
) -> dict[str, Any]:
    values = whole[1]
    found: dict[str, Any] = {"steps": shown[0], "values": shown[1], "first": values[0], "last": values[-1]}
    found |= {"lowest": min(values), "highest": max(values), "better": describe_metric(name, online).better}
    return found | ({"meaning": notes[name]} if name in notes else {})

"""Trackers get what a real run writes: TensorBoard and Trackio as their own readers find it, the others offline."""

import importlib.util
import json
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest
from posttrain.errors import DependencyError, SettingsError
from posttrain.runs import trackers
from posttrain.runs.reading import read_run

ALERT = {"kind": "alert", "severity": "warning", "code": "dead-reward", "message": "all 0", "suggestion": "--x 2"}


def needs(module):
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


class Alarm:
    """Raises an alert after the second step, as a rule would."""

    @trackers.hookimpl
    def posttrain_step_done(self, run, step):
        if step == 2:
            run.outputs.observers.tell("alert", run=run, event=ALERT)


@pytest.fixture
def tracked(train_grpo, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "CREDIT", 1000.0)  # every step, on however slow a machine

    def call(name, **keywords):
        run = train_grpo(tmp_path / "tracked", track=[name], steps=3, observers=[Alarm()], eval_data=None, **keywords)
        assert "tracker-failed" not in [event["code"] for event in run.outputs.directory.events()]
        return read_run(run.path)

    return call


@needs("tensorboard")
def test_tensorboard_reads_the_same_numbers_texts_and_options(tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tracked("tensorboard")
    found = EventAccumulator(str(run.path / "tensorboard"))
    found.Reload()
    for name in ("loss", "reward", "completion_length"):
        values = [(event.step, event.value) for event in found.Scalars(name)]
        assert values == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in run.metrics]
    (table,) = found.Tensors("completions/text_summary")[-1:]
    text = table.tensor_proto.string_val[0].decode()
    assert text.startswith("| step | prompt | completion | reward | finished |")
    assert text.count("\n") == len(run.samples) + 1
    (alert,) = found.Tensors("alerts/text_summary")
    assert (alert.step, alert.tensor_proto.string_val[0]) == (2, b"warning dead-reward: all 0.  Try: --x 2")
    (options,) = (run.path / "tensorboard").glob("*/hparams.yml")
    assert "group_size: 4" in options.read_text()


@needs("trackio")
def test_trackio_holds_the_same_numbers_and_a_table(tracked, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run = tracked("trackio")
    logs = stored_logs(tmp_path / "trackio")
    losses = [values["loss"] for values in logs if "loss" in values]
    assert losses == pytest.approx([line["loss"] for line in run.metrics])
    (table,) = [values["completions"] for values in logs if "completions" in values][-1:]
    assert sorted(row["completion"] for row in table["_value"]) == sorted(s["completion"] for s in run.samples)


def stored_logs(folder):
    (file,) = folder.glob("*.db")
    with sqlite3.connect(file) as store:
        return [json.loads(row[0]) for row in store.execute("select metrics from metrics order by step, id")]


@needs("wandb")
def test_wandb_writes_its_files_offline(tracked, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tracked("wandb")
    (file,) = run.path.glob("wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    for part in (b"completion_length", b"learning_rate", b"dead-reward"):
        assert part in content
    tables = [json.loads(path.read_text())["data"] for path in run.path.glob("wandb/*/files/media/table/*.json")]
    assert [row[2] for row in max(tables, key=len)] == [s["completion"] for s in run.samples]


@needs("mlflow")
def test_mlflow_holds_the_same_numbers_options_and_a_table(tracked, tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    run = tracked("mlflow")
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'posttrain'")
    (stored,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(stored.info.run_id, "loss")
    assert [one.value for one in history] == pytest.approx([line["loss"] for line in run.metrics])
    assert stored.data.params["group_size"] == "4"
    assert "all 0" in stored.data.tags["alert.dead-reward"]
    assert client.list_artifacts(stored.info.run_id, "completions")


class Slow:
    """A tracker whose every call takes a while by the clock of the test."""

    def __init__(self, now):
        self.now, self.steps = now, []

    def log(self, values, step):
        self.now[0] += 0.05
        self.steps.append(step)

    def finish(self):
        pass


def test_short_steps_are_thinned_so_that_a_tracker_takes_little_of_the_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(trackers.time, "monotonic", lambda: now[0])
    tracker = trackers.Tracker("tensorboard")
    tracker.inner, tracker._begun, tracker._told = Slow(now), now[0], 1e9
    tracker._tail = trackers.Tail(Path("nowhere"))
    tracker._run = SimpleNamespace(step=5000)
    for step in range(1, 5001):
        now[0] += 0.01
        tracker.posttrain_step_done(step=step, metrics={"step": step, "loss": 1.0})
    steps = tracker.inner.steps
    tracker.posttrain_run_finished(run=None)
    assert 5 <= len(steps) <= 1 + (trackers.CREDIT + 0.005 * (now[0] - 100)) / 0.05 + 1
    assert (steps[0], steps[-1]) == (1, 5000)


def test_an_unknown_tracker_is_one_line(train_grpo, tmp_path):
    with pytest.raises(SettingsError) as caught:
        train_grpo(tmp_path / "run", track=["tensorbord"])
    known = "tensorboard, trackio, wandb, mlflow"
    assert str(caught.value) == f"No tracker is called 'tensorbord'. Known: {known}."


def test_a_tracker_that_is_not_installed_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "wandb", "no_such_module")
    with pytest.raises(DependencyError) as caught:
        trackers.check_tracker("wandb")
    assert str(caught.value) == (
        "Tracker 'wandb' needs the package no_such_module. Install it with: pip install 'posttrain[wandb]'"
    )


def test_a_tracker_that_breaks_down_does_not_end_the_run(train_grpo, tmp_path, monkeypatch):
    monkeypatch.setitem(trackers._MAKERS, "tensorboard", lambda path: 1 / 0)
    run = train_grpo(tmp_path / "run", track=["tensorboard"], steps=1, eval_data=None)
    events = [event for event in run.outputs.directory.events() if event["code"] == "tracker-failed"]
    assert [event["message"] for event in events] == [
        "tracker 'tensorboard' is told nothing more: ZeroDivisionError: division by zero"
    ]

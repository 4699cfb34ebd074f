"""report.html is kept up to date in the run directory, cheaply, and never ends a run."""

import random

import pytest
from posttrain.errors import DependencyError
from posttrain.runs.report import keeper as keeping
from posttrain.runs.report.keeper import ReportKeeper


@pytest.mark.parametrize("report", [True, None, False])
def test_a_short_run_has_a_report_only_where_it_is_asked_for(train_grpo, tmp_path, report):
    run = train_grpo(tmp_path / "run", report=report, steps=1, eval_data=None)
    assert (run.path / "report.html").exists() == (report is True)
    if report:
        assert "finished" in (run.path / "report.html").read_text()


def test_overwriting_a_run_removes_its_report_and_what_trackers_wrote(write_run):
    directory = write_run()
    (directory.path / "report.html").touch()
    for name in ("tensorboard", "wandb"):
        (directory.path / name).mkdir()
    directory.create({"method": "sft"})
    assert sorted(path.name for path in directory.path.iterdir()) == ["checkpoints", "run.json"]


def test_a_run_that_fails_leaves_a_report_that_says_so(train_grpo, tmp_path):
    def broken(prompts, completions):
        raise ValueError("no")

    with pytest.raises(Exception, match="no"):
        train_grpo(tmp_path / "run", report=True, reward=broken, eval_data=None)
    assert 'class="state failed"' in (tmp_path / "run" / "report.html").read_text()


class Outputs:
    """A run as the keeper sees it."""

    def __init__(self, directory):
        self.outputs, self.directory = self, directory


def simulate(monkeypatch, directory, steps, seconds, cost):
    """Steps of ``seconds`` each while writing takes ``cost`` seconds; when each report was written, and the end."""
    now, written = [0.0], []

    def write(runs, file, command):
        written.append(now[0])
        now[0] += cost(now[0])

    monkeypatch.setattr(keeping, "write_report", write)
    keeper, run = ReportKeeper(clock=lambda: now[0]), Outputs(directory)
    keeper.posttrain_run_started(run=run)
    for _ in range(steps):
        now[0] += seconds
        keeper.posttrain_step_done(run=run)
    keeper.posttrain_run_finished(run=run)
    return written, now[0]


def test_writing_takes_below_a_hundredth_of_a_run_and_happens(monkeypatch, write_run):
    dice = random.Random(0)
    costs = []

    def cost(now):
        costs.append(dice.uniform(0.1, 2.0))
        return costs[-1]

    written, end = simulate(monkeypatch, write_run(), 4000, 5.0, cost)
    assert len(written) > 10
    assert sum(costs) < 0.01 * end
    assert written[-1] == pytest.approx(end - costs[-1])


def test_a_run_of_less_than_a_minute_writes_nothing(monkeypatch, write_run):
    assert simulate(monkeypatch, write_run(), 59, 1.0, lambda now: 0.1)[0] == []


def test_a_report_that_cannot_be_written_is_an_event_and_tried_once(monkeypatch, write_run):
    directory = write_run()
    calls = []

    def write(runs, file, command):
        calls.append(file)
        raise DependencyError("The report needs the package bokeh.")

    monkeypatch.setattr(keeping, "write_report", write)
    keeper = ReportKeeper(always=True)
    keeper.write(directory)
    keeper.write(directory)
    event = directory.last_event()
    assert (event["code"], event["message"]) == (
        "report-failed",
        "report.html is not kept: The report needs the package bokeh.",
    )
    assert len(calls) == 1

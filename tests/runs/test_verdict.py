"""One verdict on a run, from its folder alone, and what explains it."""

import json
import os
import time

import pytest
from posttrain.cli.main import main
from posttrain.errors import RunStopped
from posttrain.runs.directory import RunDirectory
from posttrain.runs.explanation import explain
from posttrain.runs.owner import started
from posttrain.runs.verdict import judge

from ..training.conftest import train  # noqa: F401  a fixture


def nothing(prompts, completions):
    return [0.0] * len(completions)


@pytest.fixture
def folder(tmp_path):
    """A run of three steps that is going on in this process, without anything wrong."""
    directory = RunDirectory(tmp_path / "run")
    (tmp_path / "run").mkdir()
    directory.create({"card": {"name": "grpo"}, "total_steps": 200, "settings": {}})
    directory.event("started", "info", "200 steps", {"step": 0})
    for step in (1, 2, 3):
        directory.metrics({"step": step, "loss": 1.0, "seconds": 2.0, "reward": step / 10})
    own(directory, os.getpid())
    return directory


def own(directory, process):
    import socket

    record = {"host": socket.gethostname(), "process": process, "started": started(process) or "long ago"}
    (directory.path / ".owner.json").write_text(json.dumps(record))


def status(directory, capsys):
    code = main(["status", str(directory.path), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_run_that_goes_on_is_healthy(folder, capsys):
    code, found = status(folder, capsys)
    assert (code, found["state"], found["running"], found["exit_code"]) == (0, "healthy", True, 0)
    assert found["why"] == "step 3 of 200, nothing looks wrong"
    assert found["metrics"]["reward"] == 0.3


def test_an_alert_makes_it_suspicious_until_it_is_old(folder, capsys):
    folder.alert("gradient-spike", "warning", "the gradient is large", {"step": 3}, "--max-grad-norm 1")
    folder.alert("dead-reward", "warning", "the reward is 0", {"step": 3}, "look at samples.jsonl")
    code, found = status(folder, capsys)
    assert (code, found["state"], found["why"]) == (3, "suspicious", "the reward is 0")
    assert found["todo"] == "look at samples.jsonl"
    assert [alert["code"] for alert in found["alerts"]] == ["dead-reward", "gradient-spike"], "causes come first"
    folder.metrics({"step": 103, "loss": 1.0, "seconds": 2.0})
    assert judge(folder.path).state == "healthy"


def test_a_process_that_is_gone_without_a_word_has_failed(folder, capsys):
    own(folder, 2**22 + 1)
    code, found = status(folder, capsys)
    assert (code, found["state"], found["running"]) == (1, "failed", False)
    assert "its process is gone and left no word after step 3" in found["why"]
    assert found["todo"] == f"posttrain resume {folder.path}"


def test_a_run_that_stands_still_is_suspicious(folder):
    old = time.time() - 4000
    os.utime(folder.path / "metrics.jsonl", (old, old))
    found = judge(folder.path)
    assert found.state == "suspicious"
    assert "where they took 2 s" in found.why


@pytest.mark.parametrize(
    ("code", "message", "state", "exit_code"),
    [
        ("finished", "3 steps", "finished", 0),
        ("failed", "RunFailed: the disk is full", "failed", 1),
        ("interrupted", "interrupted by SIGTERM after step 3 of 200", "interrupted", 0),
    ],
)
def test_a_run_that_is_over(folder, code, message, state, exit_code):
    folder.event(code, "info", message, {"step": 3})
    folder.event("ledger", "info", "prompts: none")
    (folder.path / ".owner.json").unlink()
    found = judge(folder.path)
    assert (found.state, found.exit_code) == (state, exit_code)


def test_a_resumed_run_is_judged_by_what_it_does_now(folder):
    folder.alert("nan-origin", "error", "loss is nan", {"step": 4}, "lower --learning-rate")
    folder.event("stopped", "error", "RunStopped: loss is nan", {"step": 4})
    assert judge(folder.path).state == "failed"
    assert judge(folder.path).todo == "lower --learning-rate"
    folder.event("started", "info", "resumed after step 3 of 200", {"step": 3})
    assert judge(folder.path).state == "healthy"


def test_of_several_runs_the_worst_counts(folder, capsys, tmp_path):
    folder.event("failed", "error", "RunFailed: the disk is full", {"step": 3})
    (tmp_path / "other").mkdir()
    other = RunDirectory(tmp_path / "other")
    other.create({"card": {"name": "sft"}, "total_steps": 3})
    other.event("finished", "info", "3 steps", {"step": 3})
    assert main(["status", str(other.path), str(folder.path)]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["status", str(other.path)]) == 0
    assert main(["status", str(tmp_path)]) == 2


def test_explain_says_why_a_run_ended_and_what_to_change_first(train, capsys, tmp_path):  # noqa: F811
    """A real run that was stopped; the same run trained without rules is explained alike."""
    (tmp_path / "chat.jinja").write_text("{% for message in messages %}g{{ message['content'] }}h{% endfor %}")
    own = {"reward": nothing, "chat_template": str(tmp_path / "chat.jinja")}
    with pytest.raises(RunStopped):
        train("grpo", steps=6, rules={"dead-reward": "stop"}, **own)
    path = tmp_path / "run-0"
    found = explain(path)
    assert (found["state"], found["step"], found["total"]) == ("failed", 2, 6)
    assert found["ended"].startswith("the reward is 0 for every answer of 2 steps")
    codes = [one["code"] for one in found["wrong"]]
    assert codes == ["dead-reward", "plain-prompts"]
    assert found["first"] == found["wrong"][0]["suggestion"]
    assert found["moved"]["reward"] == [0.0, 0.0]
    assert main(["explain", str(path)]) == 0
    words = capsys.readouterr().out
    assert "[dead-reward] at step 2: the reward is 0 for every answer" in words
    assert "change first: look at samples.jsonl" in words
    silent = train("grpo", steps=2, rules={"all": "off"}, **own)
    assert silent.directory.alerts() == []
    assert sorted(one["code"] for one in explain(silent.path)["wrong"]) == ["dead-reward", "plain-prompts"]
    assert main(["explain", str(silent.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "grpo"


def test_an_explanation_compares_the_first_evaluation_with_the_last_and_no_step_with_itself(tmp_path):
    folder = RunDirectory(tmp_path)
    folder.create({"method": "sft", "total_steps": 3, "settings": {}})
    for step, loss in enumerate((3.0, 2.0, 1.0), 1):
        folder.metrics({"step": step, "loss": loss})
    for step, loss in ((0, 4.0), (2, 2.5), (3, 1.5)):
        folder.event("evaluation", "info", "", {"step": step, "eval_loss": loss})
    moved = explain(folder.path)["moved"]
    assert moved == {"loss": [3.0, 1.0], "eval_loss": [4.0, 1.5]}

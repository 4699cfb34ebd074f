"""posttrain watch: runs that go on elsewhere are followed to their end, in a table, in lines or as JSON."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from posttrain.cli.main import main
from posttrain.runs.owner import started
from posttrain.runs.reading import find_runs, read_run
from posttrain.runs.tail import Tail


def claim(directory, process):
    record = {"host": socket.gethostname(), "process": process, "started": started(process), "job": None}
    (directory.path / ".owner.json").write_text(json.dumps(record))


def ended_process():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_file_that_grows_is_read_on_and_half_a_line_waits(tmp_path):
    file, tail = tmp_path / "x.jsonl", Tail(tmp_path / "x.jsonl")
    assert tail.new() == []
    file.write_text('{"a": 1}\n{"a":')
    assert tail.new() == [{"a": 1}]
    with file.open("a") as end:
        end.write(' 2}\n\n{"a": 4}\n')
    assert tail.new() == [{"a": 2}, {"a": 4}]
    assert tail.new() == []


def test_a_file_that_was_cut_back_is_read_anew(tmp_path):
    file, tail = tmp_path / "x.jsonl", Tail(tmp_path / "x.jsonl")
    file.write_text('{"a": 1}\n{"a": 2}\n')
    tail.new()
    other = tmp_path / "other"
    other.write_text('{"a": 1}\n')
    os.replace(other, file)
    assert (tail.new(), tail.restarted) == ([{"a": 1}], True)
    assert (tail.new(), tail.restarted) == ([], False)


def test_a_file_that_was_cut_in_its_place_is_read_anew(tmp_path):
    file, tail = tmp_path / "x.jsonl", Tail(tmp_path / "x.jsonl")
    file.write_text('{"a": 1}\n{"a": 2}\n')
    tail.new()
    os.truncate(file, 9)
    assert (tail.new(), tail.restarted) == ([{"a": 1}], True)


@pytest.mark.parametrize("end", ["finished", "failed", "stopped", "interrupted"])
def test_a_run_that_ended_says_how(write_run, end):
    assert read_run(write_run(end=end).path).state() == end


def test_a_run_goes_on_as_long_as_its_process_lives(write_run):
    directory = write_run(end="")
    assert read_run(directory.path).state() == "lost"
    claim(directory, os.getpid())
    assert read_run(directory.path).state() == "running"
    claim(directory, ended_process())
    assert read_run(directory.path).state() == "lost"


def test_a_run_that_was_resumed_is_no_longer_interrupted(write_run):
    directory = write_run(end="interrupted")
    directory.event("started", "info", "resumed", evidence={"step": 3})
    claim(directory, os.getpid())
    assert read_run(directory.path).state() == "running"


def test_time_left_follows_from_the_newest_steps(write_run):
    assert read_run(write_run(values=[1.0] * 4, total=10).path).seconds_left() == pytest.approx(3.0)


def test_json_says_how_all_runs_of_a_folder_stand(write_run, tmp_path, capsys):
    write_run("a")
    write_run("b", end="failed").alert("dead-reward", "warning", "all 0", {"step": 2}, "--x 2")
    assert main(["watch", str(tmp_path), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["state"], first["step"], first["total"], first["metrics"]["loss"]) == ("finished", 3, 3, 1.0)
    assert (second["state"], [alert["code"] for alert in second["alerts"]]) == ("failed", ["dead-reward"])


def test_json_can_be_followed_while_a_run_goes_on(write_run, capsys):
    directory = write_run(end="", values=[3.0])
    claim(directory, os.getpid())

    def train():
        for step in (2, 3):
            time.sleep(0.15)
            directory.metrics({"step": step, "loss": 1.0, "tokens_per_second": 1.0, "seconds": 0.1})
        directory.event("finished", "info", "3 steps", evidence={"step": 3})

    thread = threading.Thread(target=train)
    thread.start()
    assert main(["watch", str(directory.path), "--json", "--follow", "--every", "0.05"]) == 0
    thread.join()
    lines = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [one["step"] for one in lines if one["line"] == "metrics"] == [1, 2, 3]
    assert [one["code"] for one in lines if one["line"] == "event"] == ["started", "finished"]
    assert {one["run"] for one in lines} == {str(directory.path)}


def test_lines_have_the_step_alerts_and_the_completion(write_run, capsys):
    directory = write_run()
    directory.alert("dead-reward", "warning", "all 0", {"step": 2}, "--x 2")
    directory.sample({"step": 3, "reward": 1.0, "completion": "Paris", "prompt": "?"})
    assert main(["watch", str(directory.path), "--completion"]) == 0
    text = capsys.readouterr().out
    assert "run  3/3  loss↓ 1.0000  0:00 left" in text
    assert "! run  warning dead-reward: all 0.  Try: --x 2" in text
    assert "run  step 3, reward 1: Paris" in text


def test_a_terminal_gets_a_table(write_run, tmp_path):
    write_run("a")
    write_run("b", end="failed").alert("dead-reward", "warning", "all [0]", {"step": 2}, "--x 2")
    from posttrain.runs.terminal.table import runs_table
    from rich.console import Console

    console = Console(width=80, markup=False, highlight=False)
    with console.capture() as caught:
        console.print(runs_table([read_run(path) for path in find_runs([str(tmp_path)])]))
    text = caught.get()
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "finished" in text
    assert "! b  warning dead-reward: all [0].  Try: --x 2" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "'nowhere' does not exist. A run is a folder with a run.json, such as runs/NAME."),
        (["."], "'.' holds no run. A run is a folder with a run.json, such as runs/NAME."),
        ([".", "--follow"], "--follow streams JSON lines. Write: posttrain watch RUN --json --follow"),
        ([".", "--every", "0"], "--every is 0, expected seconds from 0.05 to 3600."),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["watch", *words]) == 2
    assert capsys.readouterr().err == message + "\n"

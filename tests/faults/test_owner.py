"""Who may write a run directory: one process, and a directory that nobody can write is said at once."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from posttrain.errors import SettingsError
from posttrain.runs.directory import RunDirectory
from posttrain.runs.owner import Owner, started

from ..training.conftest import ROWS
from .test_checkpoints import resume


def record(path: Path, **facts) -> None:
    """Write an owner's record: this process unless told otherwise."""
    known = {"host": socket.gethostname(), "process": os.getpid(), "started": started(os.getpid()), "job": None}
    (path / Owner.RECORD).write_text(json.dumps(known | facts))


@pytest.fixture
def other():
    """A process that lives for as long as the test."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate(b"\n")


def test_a_run_that_trains_is_not_resumed_overwritten_or_joined(train, tmp_path):
    """While the first run trains, all three are refused, and it comes to its end undisturbed."""
    refused = []

    class Intruder:
        from posttrain import hookimpl

        @hookimpl
        def posttrain_step_done(self, run, step):
            path = run.path
            if step == 2:
                for call in (
                    lambda: resume(path),
                    lambda: train("sft", output=str(path)),
                    lambda: train("sft", output=str(path), overwrite=True),
                ):
                    with pytest.raises(SettingsError) as caught:
                        call()
                    refused.append(str(caught.value))

    run = train("sft", observers=[Intruder()], save_every=1)
    whole = train("sft")
    host, me = socket.gethostname(), os.getpid()
    said = f"'{run.path}' is owned by process {me} on host {host} (this process), which is still running."
    assert refused == [f"{said} Wait for it, or end it: kill {me}"] * 3
    assert [line["loss"] for line in run.metrics] == [line["loss"] for line in whole.metrics]
    assert not list(run.path.glob(".owner*"))


def test_another_process_that_lives_is_named(tmp_path, other):
    record(tmp_path, process=other, started=started(other))
    with pytest.raises(SettingsError, match=rf"is owned by process {other} on host .*Wait for it, or end it: kill"):
        Owner.claim(tmp_path, take_over=True)  # of this host one knows


@pytest.mark.parametrize("facts", [{"process": 2**22 + 1}, {"started": "an earlier start 17"}, {"started": None}])
def test_a_stale_owner_is_recognised(tmp_path, facts):
    """Its process is gone, or its number was given to another one since."""
    record(tmp_path, **facts)
    owner = Owner.claim(tmp_path)
    assert json.loads((tmp_path / Owner.RECORD).read_text())["started"] == started(os.getpid())
    owner.release()
    assert not list(tmp_path.iterdir())


def test_another_host_is_believed_until_told_otherwise(tmp_path):
    record(tmp_path, host="elsewhere", process=7)
    with pytest.raises(SettingsError) as caught:
        Owner.claim(tmp_path)
    assert str(caught.value) == (
        f"'{tmp_path}' is owned by process 7 on host elsewhere; whether it still runs cannot be seen from "
        f"{socket.gethostname()}. If it has ended, repeat the command with --take-over."
    )
    Owner.claim(tmp_path, take_over=True).release()


def test_a_job_that_moves_to_another_host_owns_its_run(tmp_path, monkeypatch):
    record(tmp_path, host="elsewhere", job="17")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    Owner.claim(tmp_path).release()


def test_of_two_that_start_at_once_one_owns_the_run(tmp_path):
    """The system's lock, which ends with its process, decides where there is no record yet."""
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print('locked', flush=True); "
        "input()"
    )
    words = [sys.executable, "-c", code, str(tmp_path / Owner.LOCK)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(SettingsError, match="is being claimed by another process"):
            Owner.claim(tmp_path)
        process.kill()
    Owner.claim(tmp_path).release()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file/run", "Not a directory"),
        ("file", "File exists"),
        ("dangling", "File exists"),
        ("n" * 300, "File name too long"),
        ("a\0b", "embedded null byte"),
    ],
)
def test_an_output_that_cannot_be_made_is_said_before_anything_is_read(train, tmp_path, monkeypatch, name, reason):
    from posttrain import api

    (tmp_path / "file").write_text("precious")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr(api, "prepare_data", lambda *_: pytest.fail("data were read"))
    with pytest.raises(SettingsError) as caught:
        train("sft", output=str(tmp_path / name))
    said = f"The run directory '{tmp_path / name}' cannot be made or written: {reason}. Choose another --output."
    assert str(caught.value) == said
    assert (tmp_path / "file").read_text() == "precious"


def test_a_run_that_never_began_leaves_nothing(train, tmp_path):
    with pytest.raises(Exception, match="column"):
        train("sft", data=[{"unknown": 1}], output=str(tmp_path / "a" / "b"))
    assert not (tmp_path / "a").exists()


def test_what_a_kill_before_the_beginning_leaves_is_in_nobodys_way(train, tmp_path):
    """Records that were not renamed yet, and the lock of a process that is gone."""
    run = tmp_path / "run"
    run.mkdir()
    for name in (".run.json.tmp", "..owner.json.tmp", Owner.LOCK):
        (run / name).write_text("{")
    assert train("sft", output=str(run)).step == 3


def test_overwrite_removes_what_a_run_wrote_and_leaves_the_rest(train, tmp_path):
    run = train("sft", save_every=1, save_total=9)
    kept = [run.path / "notes.txt", run.path / "checkpoints" / "mine.txt", run.path / "export" / "model.bin"]
    for file in kept:
        file.parent.mkdir(exist_ok=True)
        file.write_text("precious")
    train("sft", output=str(run.path), overwrite=True, steps=1)
    assert [file.read_text() for file in kept] == ["precious"] * 3
    assert [path.name for path in run.directory.checkpoints.glob("step-*")] == ["step-1"]
    assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_symbolic_link_as_output_is_written_through(train, tmp_path):
    target = tmp_path / "disk"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    for overwrite in (False, True):
        run = train("sft", output=str(tmp_path / "link"), overwrite=overwrite)
    assert (tmp_path / "link").is_symlink()
    assert (target / "model" / "model.safetensors").is_file()
    assert run.step == 3


def test_a_folder_of_other_things_is_never_a_run_directory(train, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(SettingsError, match="is not empty and not a run directory"):
        RunDirectory(tmp_path).check_free(overwrite=True)
    assert ROWS

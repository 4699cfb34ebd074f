"""Real processes that are asked to stop or killed: ranks, the process that started them, the process that samples."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

from ..distributed.test_launch import bare
from .test_checkpoints import events

START = [sys.executable, "-m", "posttrain", "train"]


@pytest.fixture
def begin(tmp_path):
    """Start a long run and wait for its second step; ends whatever is left of it."""
    started = []
    tiny_model().save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    rows = [{"prompt": p, "completion": c} for p, c in (("ab", "cab"), ("abc", "a"), ("dcba", "abcda"), ("bad", "cc"))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rewards.py").write_text("def count(completions, **_):\n    return [len(c) for c in completions]\n")

    def call(method: str, flags: str):
        common = f"--model {tmp_path}/tiny --data {tmp_path}/rows.jsonl --batch-size 4 --steps 100000 --device cpu"
        common += f" --cache off --progress quiet --output {tmp_path}/run {flags}"
        words = [*START, method, *common.split()]
        process = subprocess.Popen(words, env=bare(), stderr=subprocess.PIPE, text=True)
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 300
        while not (metrics.exists() and metrics.read_text().count("\n") > 1) and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        everyone = psutil.Process(process.pid).children(recursive=True)
        started.extend([process, *everyone])
        return process, everyone

    yield call
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def all_end(processes, seconds=60) -> bool:
    """Whether all of them end, as orphans too; zombies have ended."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


def memory(processes) -> list[str]:
    """Folders in shared memory that belong to one of the processes."""
    owners = {str(process.pid) for process in processes}
    return [path.name for path in Path("/dev/shm").glob("posttrain-*-*-*") if path.name.split("-")[1] in owners]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_two_ranks_stop_after_the_same_step(begin, tmp_path, number):
    """The launcher is told: exit code 0, one line, one checkpoint, no rank left."""
    launcher, ranks = begin("sft", "--nproc 2")
    assert len(ranks) >= 2
    launcher.send_signal(number)
    assert launcher.wait(timeout=120) == 0
    assert all_end(ranks)
    (event,) = events(tmp_path / "run", "interrupted")
    step = event["evidence"]["step"]
    assert event["message"].endswith(f"after step {step} of 100000")
    said = [line for line in launcher.stderr.read().splitlines() if "resume" in line]
    assert len(said) == 1
    assert said[0].endswith(f"and saved. Go on with: posttrain resume {tmp_path}/run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{step}"]
    assert not list((tmp_path / "run").glob(".owner*"))


def test_ranks_end_with_the_process_that_started_them(begin):
    launcher, ranks = begin("sft", "--nproc 2")
    launcher.kill()
    launcher.wait()
    assert all_end(ranks, seconds=20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_sampling_process_ends_with_the_trainer(begin, tmp_path, number):
    """Asked to stop or killed: no process is left, nor its folder in shared memory."""
    trainer, (sampler, *_) = begin(
        "grpo", f"--max-staleness 1 --group-size 2 --max-new-tokens 4 --reward {tmp_path}/rewards.py:count"
    )
    both = [psutil.Process(trainer.pid), sampler]
    if Path("/dev/shm").exists():
        assert memory(both)
    trainer.send_signal(number)
    assert trainer.wait(timeout=120) == (0 if number == signal.SIGTERM else -number)
    assert all_end([sampler], seconds=20)
    assert not memory(both)
    if number == signal.SIGTERM:
        assert events(tmp_path / "run", "interrupted")

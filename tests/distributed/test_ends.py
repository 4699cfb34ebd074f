"""A rank that is killed: the others end at once, and the run goes on where its last checkpoint is."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

from .test_launch import bare

STEPS = 30
REWARD = """\
import os
from pathlib import Path

def count(completions, **_):
    mark = Path(__file__).with_name("killed-once")
    if os.environ.get("RANK") == "1" and Path(__file__).with_name("run").joinpath("checkpoints/step-2").exists():
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), 9)
    return [c[:4].count("a") / 4 for c in completions]
"""


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def command(tmp_path):
    """The words of a run in two processes on a tiny model of letters."""
    tiny_model().save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    rows = [{"prompt": p, "completion": c} for p, c in (("ab", "cab"), ("abc", "a"), ("dcba", "abcda"), ("bad", "cc"))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rewards.py").write_text(REWARD)
    flags = f"--model {tmp_path}/tiny --data {tmp_path}/rows.jsonl --batch-size 3 --learning-rate 0.003 --device cpu"
    flags += f" --cache off --progress quiet --save-total 99 --output {tmp_path}/run"
    return [sys.executable, "-m", "posttrain"], flags.split()


def test_kill_one_of_two_ranks_and_resume(tmp_path, command):
    """kill -9: the other ends within 30 s, exit 1 and one line; resume gives the losses of a run that went through."""
    start, flags = command
    run = tmp_path / "run"
    words = ["train", "sft", *flags, "--steps", str(STEPS), "--save-every", "3"]
    whole = subprocess.Popen([*start, *words[:-2], "--output", str(tmp_path / "whole")], env=bare())
    launcher = subprocess.Popen([*start, *words, "--nproc", "2"], env=bare(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not (run / "checkpoints" / "step-6").exists() and time.monotonic() < deadline:
        assert launcher.poll() is None
        time.sleep(0.002)
    children = psutil.Process(launcher.pid).children()
    (second,) = [child for child in children if child.environ().get("RANK") == "1"]
    second.send_signal(signal.SIGKILL)
    begun = time.monotonic()
    assert launcher.wait(timeout=30) == 1
    print(f"all ended after {time.monotonic() - begun:.1f} s")
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    (said,) = [line for line in launcher.stderr.read().splitlines() if "Rank" in line]
    assert said.startswith("Rank 1 was ended by SIGKILL; the others were ended too.")
    assert said.endswith(f"posttrain resume {run}")
    before = losses(run)
    assert 6 <= len(before) < STEPS
    assert subprocess.run([*start, "resume", str(run)], env=bare(), check=False).returncode == 0
    assert whole.wait(timeout=60) == 0
    after = losses(run)
    assert after[: len(before)] == before[: len(after)]  # what was lost with the rank is made again, bit for bit
    assert after == pytest.approx(losses(tmp_path / "whole"), rel=1e-5, abs=1e-6)


def test_restarts_go_on_from_the_last_checkpoint(tmp_path, command):
    """Rank 1 kills itself once after a checkpoint; with --max-restarts the run ends as if nothing had been."""
    start, flags = command
    words = ["train", "grpo", *flags, "--steps", "4", "--save-every", "1", "--reward", f"{tmp_path}/rewards.py:count"]
    words += ["--group-size", "2", "--max-new-tokens", "4"]
    started = [*start, *words, "--nproc", "2", "--max-restarts", "1"]
    done = subprocess.run(started, env=bare(), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed-once").exists()
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    messages = [event["message"] for event in events if event["code"] == "started"]
    assert len(messages) == 2
    assert messages[1].startswith("resumed after step ")
    plain = [*words[:-2], "--max-new-tokens", "4", "--output", str(tmp_path / "plain")]
    assert subprocess.run([*start, *plain], env=bare(), check=False).returncode == 0
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5, abs=1e-6)

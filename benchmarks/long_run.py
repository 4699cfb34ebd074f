"""Train a tiny model by grpo for many steps and watch what must not grow: memory, files, threads, seconds of a step.

``python -m benchmarks.long_run --steps 2000`` writes ``results/long_run.json``, for rollouts in turn ("in turn") and
for a sampler in a process of its own that runs ahead ("ahead"). Memory is anonymous resident memory, of the trainer
and of its sampler: pages of files would count for this run or for others by who else has them open. Its growth is the
slope of a line through the second half of the run; what the run keeps by intention, the lines of metrics that
``run.metrics`` returns, is counted beside it. No report is written: the first one takes 26 MB once, for the libraries
that draw it. Seconds are the processor's, of the same processes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from posttrain import api, hookimpl
from posttrain_testkit.tiny import count_of_a, tiny_model, tiny_tokenizer

HERE = Path(__file__).resolve().parent
MODES: dict[str, dict[str, Any]] = {"in turn": {}, "ahead": {"max_staleness": 1, "generation_process": True}}
FILES = ("metrics.jsonl", "events.jsonl", "ledger.jsonl", "samples.jsonl")


@dataclass
class Watched:
    """What an observer saw at some steps of a run."""

    steps: list[int] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    """Of all processes."""
    trainer_mb: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    """Of all processes, since the start."""


class Watcher:
    """Looks at the run's processes every ``every`` steps."""

    def __init__(self, every: int):
        self.every, self.seen = every, Watched()

    @hookimpl
    def posttrain_step_done(self, step: int) -> None:
        """Note memory, open files, threads and processor time."""
        if step % self.every:
            return
        own = psutil.Process()
        processes = [own, *own.children(recursive=True)]
        times = [one.cpu_times() for one in processes]
        self.seen.steps.append(step)
        infos = [one.memory_info() for one in processes]
        memory = [(one.rss - one.shared) / 2**20 for one in infos]
        self.seen.memory_mb.append(sum(memory))
        self.seen.trainer_mb.append(memory[0])
        self.seen.files.append(sum(one.num_fds() for one in processes))
        self.seen.threads.append(sum(one.num_threads() for one in processes))
        self.seen.cpu_seconds.append(sum(one.user + one.system for one in times))


def watch(mode: str, steps: int, every: int) -> dict[str, Any]:
    """Run one mode in this process and return what was seen, with the sizes of the run's files in bytes a step."""
    torch.manual_seed(0)
    watcher = Watcher(every)
    with tempfile.TemporaryDirectory() as folder:
        api.train(
            "grpo",
            model=tiny_model(),
            tokenizer=tiny_tokenizer(),
            data=[{"prompt": text} for text in ("ab", "abc", "a", "abcd", "b", "bc", "cab", "d")],
            reward=count_of_a,
            observers=[watcher],
            output=f"{folder}/run",
            **{"steps": steps, "batch_size": 4, "group_size": 4, "max_new_tokens": 8, "learning_rate": 1e-4},
            **{"save_every": max(1, steps // 4), "progress": "quiet", "cache": "off", "device": "cpu"},
            report=False,
            **MODES[mode],
        )
        sizes = {name: round(Path(folder, "run", name).stat().st_size / steps, 1) for name in FILES}
    return asdict(watcher.seen) | {"bytes_a_step": sizes}


def slope(steps: list[int], values: list[float]) -> tuple[float, float]:
    """Least-squares slope and its standard error, per step."""
    x, y = torch.tensor(steps, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
    x = x - x.mean()
    rate = float((x * y).sum() / (x * x).sum())
    rest = y - y.mean() - rate * x
    return rate, float(((rest * rest).sum() / (len(steps) - 2) / (x * x).sum()).sqrt())


def verdict(seen: dict[str, Any]) -> dict[str, Any]:
    """What grew over the second half of a run, and what a step cost in its last quarter against its second."""
    half, quarter = len(seen["steps"]) // 2, len(seen["steps"]) // 4
    rate, error = slope(seen["steps"][half:], seen["memory_mb"][half:])
    cost, span = seen["cpu_seconds"], seen["steps"]
    second = (cost[half] - cost[quarter]) / (span[half] - span[quarter])
    last = (cost[-1] - cost[-1 - quarter]) / (span[-1] - span[-1 - quarter])
    return {
        "steps": span[-1],
        "memory_mb": [round(seen["memory_mb"][place]) for place in (0, half, -1)],
        "trainer_mb": [round(seen["trainer_mb"][place]) for place in (0, half, -1)],
        "kilobytes_a_step": round(rate * 1024, 2),
        "kilobytes_a_step_error": round(error * 1024, 2),
        "files": [seen["files"][half], max(seen["files"][half:])],
        "threads": [seen["threads"][half], max(seen["threads"][half:])],
        "cpu_ms_a_step": [round(1000 * second, 1), round(1000 * last, 1)],
        "bytes_a_step": seen["bytes_a_step"],
    }


def main() -> None:
    """Watch both modes, each in a process of its own, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.mode:
        print(json.dumps(watch(given.mode, given.steps, given.every)))
        return
    found = {}
    for mode in MODES:
        options = ["--mode", mode, "--steps", str(given.steps), "--every", str(given.every)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.long_run", *options], capture_output=True, text=True, check=True
        )
        found[mode] = verdict(json.loads(done.stdout.splitlines()[-1]))
        print(mode, json.dumps(found[mode]))
    (HERE / "results" / "long_run.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

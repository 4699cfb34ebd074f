"""Rollouts that run ahead against rollouts in turn: steps an hour and reward, sampler and trainer with one core each.

    python benchmarks/ahead.py --output benchmarks/results/ahead.json

Both runs sample in a process of their own with one thread and train in another with one thread; only the staleness
differs. The batch is chosen so that sampling and training take about as long as each other, which is where overlap can
gain most: (g + t) / max(g, t) <= 2. A third run has both cores for each phase in turn: what the same machine does
without a second process. Needs two idle cores; the example model and task are made on the spot.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

#: What the runs have in common.
COMMON = {
    "model": "example",
    "data": "example",
    "schedule": "constant",
    "group-size": 8,
    "progress": "quiet",
    "cache": "off",
    "device": "cpu",
}
#: Name, threads, flags.
RUNS = {
    "in turn, one core each": (1, ["--generation-process", "--max-staleness", "0"]),
    "ahead by 1, one core each": (1, ["--max-staleness", "1"]),
    "in turn, one process, both cores": (2, ["--max-staleness", "0"]),
}
#: Steps at the start that are not timed: everything happens for the first time, and the queue fills.
WARM = 3


def run(name: str, steps: int, seed: int, flags: list[str]) -> dict[str, Any]:
    """Train once; the figures of ``metrics.jsonl``."""
    threads, own = RUNS[name]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        words = [f"--{key}={value}" for key, value in COMMON.items()]
        command = [sys.executable, "-m", "posttrain.cli.main", "train", "grpo", *words, *flags, *own]
        command += ["--steps", str(steps), "--seed", str(seed), "--output", str(output)]
        begun = time.perf_counter()
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        whole = time.perf_counter() - begun
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    timed = lines[WARM:]
    seconds = statistics.mean(line["seconds"] for line in timed)
    return {
        "name": name,
        "seed": seed,
        "steps_per_hour": 3600 / seconds,
        "seconds_per_step": seconds,
        "generation_seconds": statistics.mean(line["generation_seconds"] for line in timed),
        "weights_seconds": statistics.mean(line["weights_seconds"] for line in timed),
        "process_seconds": whole,
        "reward_first": statistics.mean(line["reward"] for line in lines[:10]),
        "reward_last": statistics.mean(line["reward"] for line in lines[-10:]),
        "reward_mean": statistics.mean(line["reward"] for line in lines),
        "staleness": statistics.mean(line.get("sampler_staleness", 0.0) for line in timed),
        "effective_share": statistics.mean(line["sampler_effective_share"] for line in timed),
    }


def balance(seed: int, flags: list[str]) -> list[str]:
    """Completions sampled at the same time, such that sampling takes about as long as all else."""
    name, batch, tried = next(iter(RUNS)), 32, {}
    while batch not in tried and 1 <= batch <= 256:
        found = run(name, 8, seed, [*flags, "--generation-batch-size", str(batch)])
        ratio = found["generation_seconds"] / (found["seconds_per_step"] - found["generation_seconds"])
        tried[batch] = ratio
        print(json.dumps({"generation_batch_size": batch, "sampling_by_rest": ratio}), flush=True)
        if 0.8 <= ratio <= 1.25:
            break
        batch = batch * 2 if ratio > 1 else batch // 2
    best = min(tried, key=lambda size: abs(math.log(tried[size])))
    return [*flags, "--generation-batch-size", str(best)]


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no further seed that would end later")
    parser.add_argument("--only", nargs="+", default=list(RUNS))
    parser.add_argument("--output", type=Path)
    known, flags = parser.parse_known_args()
    begun = time.perf_counter()
    flags = balance(known.seeds[0], flags)
    found: list[dict[str, Any]] = []
    for seed in known.seeds:
        spent = time.perf_counter() - begun
        if found and spent * (len(found) + len(known.only)) / len(found) > known.seconds:
            break
        for name in known.only:
            found.append(run(name, known.steps, seed, flags))
            print(json.dumps(found[-1]), flush=True)
    means = {
        name: {
            key: statistics.mean(one[key] for one in found if one["name"] == name) for key in found[0] if key != "name"
        }
        for name in known.only
    }
    print(json.dumps(means, indent=2))
    if known.output:
        known.output.parent.mkdir(parents=True, exist_ok=True)
        known.output.write_text(json.dumps({"flags": flags, "runs": found, "means": means}, indent=2) + "\n")


if __name__ == "__main__":
    main()

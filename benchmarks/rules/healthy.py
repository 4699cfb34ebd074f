"""Runs in which nothing is wrong: how often a rule says otherwise, and what the rules cost.

    python -m benchmarks.rules.healthy --steps 200 --output benchmarks/results/rules_healthy.json

The example's small model and task: every stable method, and five experimental ones, with the options
that the example has. ``look`` is the time that all rules take, measured around each call in the run itself, beside the
time of the step.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import posttrain
import torch
from posttrain.runs.rules.watcher import Watcher
from transformers.utils import logging

STABLE = ("sft", "reward", "dpo", "rloo", "grpo", "simpo", "kto", "orpo", "dapo", "gkd")
EXPERIMENTAL = ("dft", "ipo", "gspo", "cispo", "online-dpo")
#: Smaller batches than the example's, so that 200 steps of a method that samples take a minute.
OPTIONS: dict[str, Any] = {"batch_size": 8, "cache": "off", "progress": "quiet", "device": "cpu", "save_minutes": 0}


def healthy(method: str, steps: int, folder: str, **options: Any) -> dict[str, Any]:
    """One run; its alerts, the share of its time that went into rules, and how its loss and reward moved."""
    spent: list[float] = []
    look = Watcher.look

    def timed(self, *arguments, **keywords):
        begun = time.perf_counter()
        found = look(self, *arguments, **keywords)
        spent.append(time.perf_counter() - begun)
        return found

    with patch.object(Watcher, "look", timed):
        run = posttrain.train(
            method, model="example", data="example", eval_data="example", output=f"{folder}/{method}", steps=steps,
            eval_every=max(1, steps // 4), eval_batches=2, **(OPTIONS | options),
        )  # fmt: skip
    lines = run.metrics
    seconds = sum(line["seconds"] for line in lines)
    moved = {name: [lines[0][name], lines[-1][name]] for name in ("loss", "reward") if name in lines[0]}
    return {
        "method": method,
        "steps": run.step,
        "alerts": [{k: a[k] for k in ("code", "message", "evidence")} for a in run.directory.alerts()],
        "step_ms": 1000 * seconds / len(lines),
        "look_ms": 1000 * sum(spent) / len(spent),
        "share": sum(spent) / seconds,
        "moved": moved,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--method", action="append", help="only these")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for method in options.method or (*STABLE, *EXPERIMENTAL):
            row = healthy(method, options.steps, folder)
            rows.append(row)
            alerts = ", ".join(f"{a['code']} at {a['evidence']['step']}: {a['message']}" for a in row["alerts"])
            print(
                f"{method:<12} {row['steps']} steps of {row['step_ms']:.1f} ms, rules {row['look_ms']:.3f} ms "
                f"({row['share']:.2%}); {alerts or 'no alert'}; {row['moved']}",
                flush=True,
            )
            if options.output:
                facts = {"steps": options.steps, "rows": rows, "settings": OPTIONS}
                options.output.write_text(json.dumps(facts, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

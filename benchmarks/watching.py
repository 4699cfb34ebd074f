"""What watching a run costs: rules, progress, report and trackers, each as a share of the time of a step.

    python -m benchmarks.watching [--steps 300] [--output benchmarks/results/watching.json]

The model is the tiny one of the conformance kit (a few thousand parameters, steps of milliseconds): on any real model
the shares are smaller. Each observer is timed from within the run, so that noise between two runs does not count.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from posttrain import api
from posttrain.runs import progress as shown
from posttrain.runs.report.keeper import ReportKeeper
from posttrain.runs.rules.watcher import Watcher
from posttrain.runs.trackers import Tracker
from posttrain_testkit.tiny import count_of_a, tiny_model, tiny_tokenizer


class Terminal(io.StringIO):
    """A terminal that nobody looks at."""

    def isatty(self) -> bool:
        return True


class Timed:
    """Adds up the seconds that calls of a method take."""

    def __init__(self, owner: type, name: str):
        self.seconds, inner = 0.0, getattr(owner, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            begun = time.perf_counter()
            try:
                return inner(*arguments, **keywords)
            finally:
                self.seconds += time.perf_counter() - begun

        call.__wrapped__ = inner  # type: ignore[attr-defined]  # pluggy reads the names of the arguments from it
        call.posttrain_impl = getattr(inner, "posttrain_impl", None)  # type: ignore[attr-defined]
        setattr(owner, name, call)
        self.undo = lambda: setattr(owner, name, inner)


def measure(steps: int, track: list[str], folder: Path) -> dict[str, float]:
    """Run grpo on the tiny model; return the seconds of the steps and of what watched them."""
    timed = {
        "rules": Timed(Watcher, "look"),
        "progress": Timed(shown.ProgressLine, "step"),
        "report": Timed(ReportKeeper, "posttrain_step_done"),
        "trackers": Timed(Tracker, "posttrain_step_done"),
    }
    screen, shown.sys.stderr = shown.sys.stderr, Terminal()
    try:
        run = api.train(
            "grpo", model=tiny_model(), tokenizer=tiny_tokenizer(), data=[{"prompt": p} for p in ("ab", "abc", "a")],
            reward=count_of_a, batch_size=2, group_size=4, max_new_tokens=6, steps=steps, track=track, cache="off",
            device="cpu", save_minutes=0, output=str(folder), progress="bar",
        )  # fmt: skip
    finally:
        shown.sys.stderr = screen
        for one in timed.values():
            one.undo()
    return {"steps": sum(line["seconds"] for line in run.metrics)} | {name: t.seconds for name, t in timed.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--track", nargs="*", default=["tensorboard", "trackio"])
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for track in [[], *([name] for name in options.track)]:
            found = measure(options.steps, track, Path(folder) / f"run-{len(rows)}")
            watching = sum(seconds for name, seconds in found.items() if name != "steps")
            row = {"track": track, "milliseconds_a_step": 1000 * found["steps"] / options.steps}
            row |= {f"{name}_share": found[name] / found["steps"] for name in found if name != "steps"}
            rows.append(row | {"share": watching / found["steps"]})
            print("  ".join(f"{name} {value:.4g}" if name != "track" else str(value) for name, value in row.items()))
    if options.output:
        options.output.write_text(json.dumps({"steps": options.steps, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

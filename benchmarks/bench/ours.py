"""One piece of work on posttrain's side: ``python -m benchmarks.bench.ours WORK.json``."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from posttrain import hookimpl

from benchmarks.bench import cases
from benchmarks.bench.cases import Work


class Clock:
    """An observer that notes when the loop begins and when each step is done, in seconds since the epoch."""

    def __init__(self) -> None:
        self.begun = 0.0
        self.ends: list[float] = []

    @hookimpl
    def posttrain_run_started(self) -> None:
        self.begun = time.time()

    @hookimpl
    def posttrain_step_done(self) -> None:
        self.ends.append(time.time())


def main(work: Work) -> None:
    """Train and write down what it took."""
    from posttrain.api import train

    case = cases.CASES[work.case]
    if not work.share:
        _never_share()
    clock = Clock()
    options = arguments(work, case)
    if case.online:
        options["reward"] = [_reward]
    with tempfile.TemporaryDirectory() as output:
        run = train(case.method, output=output + "/run", observers=[clock], **options)
    generation = [line.get("generation_seconds", 0.0) for line in run.metrics]
    result = {
        "begun": clock.begun,
        "ends": clock.ends,
        "losses": [line["loss"] for line in run.metrics],
        "generation": generation,
        "completion_length": [line.get("completion_length", 0.0) for line in run.metrics],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "ids": _ids(run, case),
    }
    Path(work.result).write_text(json.dumps(result), encoding="utf-8")


def arguments(work: Work, case: cases.Case) -> dict[str, Any]:
    """Settings of the run by name; what is not named here is posttrain's default."""
    found: dict[str, Any] = {
        "model": work.model,
        "data": str(Path(work.folder) / case.file),
        "steps": work.steps,
        "batch_size": case.batch // case.group,
        "learning_rate": cases.LEARNING_RATE,
        "schedule": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": cases.MAX_GRAD_NORM,
        "adam_epsilon": cases.ADAM_EPSILON,
        "max_length": cases.MAX_LENGTH,
        "dtype": "float32",
        "device": "cpu",
        "shuffle": False,
        "cache": "off",
        "progress": "quiet",
    }
    if case.method == "dpo":
        found["beta"] = cases.DPO_BETA
    if case.online:
        found |= {"group_size": case.group, "max_new_tokens": case.max_new_tokens, "beta": 0.0}
    if case.autocast:
        found["autocast"] = True
    return found | case.settings | work.settings


def _reward(prompts: list[Any], completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    return [cases.right_answer(text, right) for text, right in zip(completions, answer, strict=True)]


def _never_share() -> None:
    """Load models as ones that cannot share prompts: the switch that users do not need and this table does."""
    from posttrain.models import load

    chosen = load.choose_layout

    def choose_layout(policy: Any, packing: bool) -> list[str]:
        notes = chosen(policy, packing)
        policy.shared = False
        return notes

    load.choose_layout = choose_layout


def _ids(run: Any, case: cases.Case) -> list[list[list[int]]]:
    """Token ids of every sequence of every row, in order; see ``theirs._ids``."""
    rows = run.source.collector.prompts if case.online else run.source.data
    return [
        [sequence.ids.tolist() for role in rows[i].sequences for sequence in rows[i].sequences[role]]
        for i in range(len(rows))
    ]


if __name__ == "__main__":
    main(Work.read(sys.argv[1]))

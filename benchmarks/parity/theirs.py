"""One case on TRL's side, run by an interpreter that has TRL: ``python theirs.py FOLDER CASE RESULT.json``.

``cases.arguments`` are the options of its command line.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import cases
import theirs_distillation
import theirs_offline
import theirs_online
import theirs_pairs
import theirs_ppo
from theirs_common import Given
from transformers import AutoProcessor, AutoTokenizer, TrainerCallback

PARTS = (theirs_offline, theirs_online, theirs_pairs, theirs_ppo, theirs_distillation)
BUILDERS = {method: build for part in PARTS for method, build in part.BUILDERS.items()}
"""Method -> function of ``Given`` that makes the trainer."""


class Clock(TrainerCallback):
    """Seconds of each optimiser step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.begun = 0.0

    def on_step_begin(self, *given: Any, **named: Any) -> None:
        self.begun = time.perf_counter()

    def on_step_end(self, *given: Any, **named: Any) -> None:
        self.seconds.append(time.perf_counter() - self.begun)


def main(folder: Path, case: cases.Case, result: Path, save: str | None) -> None:
    """Train, write the series, and the model where ``save`` says."""
    begun = time.perf_counter()
    clock = Clock()
    with tempfile.TemporaryDirectory() as output:
        trainer = _trainer(folder, case, output)
        trainer.add_callback(clock)
        trainer.train()
        if save:
            trainer.save_model(save)
    steps = getattr(trainer, "recorded", None) or _logged(trainer, clock)
    ids = theirs_online.ids(trainer) if case.online else theirs_offline.ids(trainer, case)
    result.write_text(json.dumps({"steps": steps, "ids": ids, "whole": time.perf_counter() - begun}))


def _logged(trainer: Any, clock: Clock) -> list[dict[str, float]]:
    """What the trainer logged of each step, for those that do not keep their own ``recorded``."""
    logs = [line for line in trainer.state.log_history if "loss" in line]
    losses = getattr(trainer, "losses", None) or [line["loss"] for line in logs]
    return [
        {"loss": loss, "grad_norm": float(line["grad_norm"]), "seconds": seconds}
        for loss, line, seconds in zip(losses, logs, clock.seconds, strict=True)
    ]


def _trainer(folder: Path, case: cases.Case, output: str) -> Any:
    model = str(folder / case.model)
    tokenizer = (AutoProcessor if case.images else AutoTokenizer).from_pretrained(model)
    return BUILDERS[case.method](Given(folder, case, output, model, tokenizer))


if __name__ == "__main__":
    told = cases.arguments()
    main(told.folder, told.case, told.result, told.save)

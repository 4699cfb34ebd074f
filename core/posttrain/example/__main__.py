"""Train a small model from scratch: first by imitation (sft), then by a reward that checks its answers (grpo).

The task is to write five digits in ascending order. Only half of the demonstrations do so; the other half sort the
wrong way round. Imitation therefore teaches the model to sort, but not which way: about half of its answers are
right. Reinforcement learning needs no demonstrations, only a function that checks answers, and mends this.

Run it with ``python -m posttrain.example``: about a minute on two processor cores, nothing is downloaded.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

import posttrain
from posttrain.example.model import accuracy, character_tokenizer, small_model
from posttrain.example.task import demonstrations, is_sorted, problems

if TYPE_CHECKING:
    from posttrain.training.run import Run

Rows = list[dict[str, str]]
HELD_OUT, DEMONSTRATED, PRACTISED = 500, 1500, 5000
#: Whether the library that draws the curves of a report is installed.
DRAWS = importlib.util.find_spec("bokeh") is not None


def imitate(model: Any, tokenizer: Any, rows: Rows, options: argparse.Namespace) -> Run:
    """Fine-tune on demonstrations: rows with "prompt" and "completion"."""
    return posttrain.train(
        "sft",
        model=model,
        tokenizer=tokenizer,
        data=demonstrations(rows),
        steps=20 if options.quick else 300,
        batch_size=64,
        learning_rate=3e-3,  # high, since the weights are random at first
        warmup_steps=10,
        seed=options.seed,
        cache="off",
        output=f"{options.output}/sft",
        overwrite=True,
        report=DRAWS,
        log_every=50,
    )


def reinforce(model: Any, tokenizer: Any, rows: Rows, options: argparse.Namespace) -> Run:
    """Train with GRPO on rows with "prompt"; the reward gets every other column by its name."""
    return posttrain.train(
        "grpo",
        model=model,
        tokenizer=tokenizer,
        data=rows,
        reward=[is_sorted],
        group_size=8,
        beta=0.0,  # no penalty: the demonstrations' errors should not persist
        max_new_tokens=6,
        steps=2 if options.quick else 80,
        batch_size=32,  # prompts, each answered group_size times
        learning_rate=3e-4,
        warmup_steps=5,
        generation_batch_size=256,
        seed=options.seed,
        cache="off",
        output=f"{options.output}/grpo",
        overwrite=True,
        report=DRAWS,
        log_every=10,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the demonstration; return 0 if held-out accuracy rose at both stages (or ``--quick``), else 1."""
    options = _options(arguments)
    torch.set_num_threads(1)  # a model this small is slower with several threads
    logging.disable_progress_bar()  # one bar a stage is enough
    begun = time.monotonic()

    # No problem of one part occurs in another, so accuracy is measured on unseen problems.
    rows = problems(HELD_OUT + DEMONSTRATED + PRACTISED, options.seed)
    held_out, rest = rows[:HELD_OUT], rows[HELD_OUT:]
    demonstrated, practice = rest[:DEMONSTRATED], rest[DEMONSTRATED:]
    tokenizer = character_tokenizer()
    model = small_model(tokenizer, options.seed)
    before = accuracy(model, tokenizer, held_out)

    print("1. Supervised fine-tuning on demonstrations, half of which sort the wrong way round", flush=True)
    run = imitate(model, tokenizer, demonstrated, options)
    between = accuracy(run.model, tokenizer, held_out)

    print(
        "2. GRPO: the model answers new problems eight times each, the reward says which answers are right", flush=True
    )
    run = reinforce(run.model, tokenizer, practice, options)
    after = accuracy(run.model, tokenizer, held_out)

    print(f"\nAccuracy on {HELD_OUT} held-out problems, after {time.monotonic() - begun:.0f} seconds")
    for name, value in (("random weights", before), ("after sft", between), ("after grpo", after)):
        print(f"  {name:<15} {value:6.1%}  {'#' * round(40 * value)}")
    print(f"Model: {run.path}/model   Metrics: {run.path}/metrics.jsonl")
    if DRAWS:
        print(f"Report, to open in a browser: {run.path}/report.html")
    return 0 if options.quick or before < between < after else 1


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m posttrain.example", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="other problems, other weights, other samples [0]")
    parser.add_argument("--output", default="runs/demo", help="folder of the two run directories [runs/demo]")
    parser.add_argument("--quick", action="store_true", help="only a few steps, to see that everything works")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())

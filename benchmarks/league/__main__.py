"""Run the league: ``python -m benchmarks.league``.

Every installed method is tried with three learning rates on a seed of its own, and with a fourth where the best lies at
an end of the grid; the best is then measured with three other seeds. What is in the results already is not run again,
so the same command goes on where it was killed.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from posttrain.authoring.sync import cards_of
from posttrain.catalogue.cards import Card
from transformers.utils import logging

from benchmarks.league import runs
from benchmarks.league.runs import RATES, SEEDS, SIZES, TUNING_SEED, WIDER, Trial, run
from benchmarks.league.tasks import HELD_OUT, TASKS, TUNING, task_of

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"


class Results:
    """The records of all runs, a line each, on disk as soon as they are there."""

    def __init__(self, file: Path):
        self.file = file
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        self.records = {_key(one): one for one in map(json.loads, lines)}

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record."""
        self.records[_key(record)] = record
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, separators=(",", ":")) + "\n")

    def has(self, trial: Trial) -> bool:
        """Whether it was run already, or found to be impossible."""
        return _key(vars(trial)) in self.records

    def best_rate(self, method: str, task: str, size: str, rates: tuple[float, ...] = RATES + WIDER) -> float | None:
        """Of ``rates`` the one with the highest score on the tuning problems; None where no run succeeded."""
        tried = [self.records.get((method, task, size, TUNING_SEED, rate), {}) for rate in rates]
        scored = [(one["score"], -one["rate"]) for one in tried if "score" in one]
        return -max(scored)[1] if scored else None


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("method", "task", "size", "seed", "rate"))


def entries(cards: list[Card]) -> list[tuple[str, str]]:
    """Methods with their tasks, the start and the baseline of each task before the others."""
    tasks = [name for name in TASKS if any(task_of(card) == name for card in cards)]
    first = [("", name) for name in tasks if TASKS[name].score == "right"]
    first += [(TASKS[name].baseline, name) for name in tasks if TASKS[name].baseline]
    return list(dict.fromkeys([*first, *((card.name, task_of(card)) for card in cards)]))


def trials(found: list[tuple[str, str]], results: Results, size: str, seeds: list[int]) -> Iterator[Trial]:
    """All trials in their order, so that whatever was run tells most; the tables with most methods first.

    Baselines; then every method with its baseline's rate, seed by seed; then each one's own rate.
    """
    sizes = Counter(task for _, task in found)
    ordered = sorted(found, key=lambda one: -sizes[one[1]])
    for method, task in ordered:
        if method in ("", TASKS[task].baseline):
            yield from _tuned(method, task, size, results, seeds)
    for seed in seeds:
        for method, task in ordered:
            rate = results.best_rate(TASKS[task].baseline, task, size)
            if method:
                yield Trial(method, task, size, seed, RATES[1] if rate is None else rate)
    for method, task in ordered:
        yield from _tuned(method, task, size, results, seeds)


def _tuned(method: str, task: str, size: str, results: Results, seeds: list[int]) -> Iterator[Trial]:
    """The rates, and every seed with the best of them."""
    yield from _tuning(method, task, size, results)
    rate = results.best_rate(method, task, size) if method else 0.0
    if rate is not None:
        yield from (Trial(method, task, size, seed, rate) for seed in seeds)


def _tuning(method: str, task: str, size: str, results: Results) -> Iterator[Trial]:
    """The two middle rates, the one beside the better of them, and one more beyond an end that is the best so far."""
    if not method:
        return
    low, middle, high = RATES[0], RATES[1:3], RATES[3]
    yield from (Trial(method, task, size, TUNING_SEED, rate) for rate in middle)
    best = results.best_rate(method, task, size, middle)
    if best is not None:
        yield Trial(method, task, size, TUNING_SEED, low if best == middle[0] else high)
    beyond = dict(zip((low, high), WIDER, strict=True)).get(results.best_rate(method, task, size, RATES) or 0.0)
    if beyond is not None:
        yield Trial(method, task, size, TUNING_SEED, beyond)


def main() -> None:
    """Run what is missing."""
    options = _options()
    torch.set_num_threads(1)  # a model this small loses time when several threads share its work
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    cards = [card for card in cards_of(ROOT) if not options.methods or card.name in options.methods]
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "setup.json").write_text(json.dumps(setup(), indent=2) + "\n", encoding="utf-8")
    results = Results(options.results / "runs.jsonl")
    found = entries(cards)
    total, begun = len(found) * (len(RATES) + 2 * len(options.seeds)), time.monotonic()
    for trial in trials(found, results, options.size, options.seeds):
        if results.has(trial):
            continue
        record = run(trial)
        results.add(record)
        said = record.get("failed") or f"{record['score']:.3f}"
        minutes = (time.monotonic() - begun) / 60
        print(
            f"{minutes:6.1f} min  {len(results.records)}/{total}  {trial.task:<13} "
            f"{trial.method or '(start)':<22} seed {trial.seed}  rate {trial.rate:g}  {said}  "
            f"{record['seconds']:.1f} s",
            flush=True,
        )


def setup() -> dict[str, Any]:
    """What all runs have in common."""
    return {
        "budget": {
            "rows": {"batch_size": runs.BATCH, "steps": runs.STEPS},
            "prompts": {"answers_a_step": runs.ANSWERS, "batches_of_answers": runs.ROLLOUTS, "max_new_tokens": 6},
            "warmup_steps": runs.WARMUP,
        },
        "rates": RATES,
        "wider": WIDER,
        "tuning_seed": TUNING_SEED,
        "held_out": HELD_OUT,
        "tuning": TUNING,
        "samples": runs.SAMPLES,
        "sizes": SIZES,
        "tasks": {
            name: {"title": task.title, "baseline": task.baseline, "rule": task.rule, "score": task.score}
            for name, task in TASKS.items()
        },
        "own_task": {card.name: task_of(card) for card in cards_of(ROOT)},
        "versions": {name: version(name) for name in ("posttrain", "torch", "transformers")}
        | {"python": platform.python_version()},
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.league", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("methods", nargs="*", help="only these methods, and the baselines of their tasks [all]")
    parser.add_argument("--size", choices=list(SIZES), default="small", help="size of the model [small]")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="seeds of the figures [1 2 3]")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results [results]")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command goes on.")

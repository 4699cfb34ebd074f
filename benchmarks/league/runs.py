"""One run of the league: a method trained with the common budget, then measured."""

from __future__ import annotations

import copy
import functools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import posttrain
import torch
from posttrain.authoring.league import DIGIT
from posttrain.catalogue import methods
from posttrain.evaluation.result import SetResult
from posttrain.example import made
from posttrain.example.example import MODEL, TEACHER
from posttrain.example.rows import make_rows
from posttrain.example.task import is_sorted
from posttrain.models import foreign
from posttrain.rewards.steps import encode_steps, step_probabilities
from posttrain.settings import Settings
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.league.tasks import ASKED, TASKS, Task, held_out, pairs, problems, steps

#: Name of a size -> how wide the model is.
SIZES = {"small": 64, "wide": 128}
#: The learning rates: with a seed and on problems of their own the two in the middle, and the one beside the better.
RATES = (3e-5, 1e-4, 3e-4, 1e-3)
#: One step beyond either end, tried where the rate at that end was the best.
WIDER = (1e-5, 3e-3)
#: The seed that the learning rate is chosen with, and those of the figures.
TUNING_SEED, SEEDS = 0, (1, 2, 3)
#: Examples a step and steps of methods that learn from rows; 640 rows, once.
BATCH, STEPS = 32, 20
#: Answers a step, over all prompts, and batches of them, of methods that sample.
ANSWERS, ROLLOUTS = 128, 10
WARMUP = 3
#: Answers to each held-out prompt, at temperature 1.
SAMPLES = 2


@dataclass(frozen=True)
class Trial:
    """A method on a task; ``method`` "" is the model as it was."""

    method: str
    task: str
    size: str
    seed: int
    rate: float


def run(trial: Trial) -> dict[str, Any]:
    """Train and measure; the record that the results keep, with the reason where it could not be done."""
    begun = time.perf_counter()
    record: dict[str, Any] = {**vars(trial)}
    try:
        found = _measured(trial)
    except Exception as error:  # whatever one method does, the others go on
        record["failed"] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    else:
        record |= found
    return record | {"seconds": round(time.perf_counter() - begun, 2)}


def _measured(trial: Trial) -> dict[str, Any]:
    task, tuning = TASKS[trial.task], trial.seed == TUNING_SEED
    if not trial.method:
        return _figures(base(trial.size)[0], trial, task, tuning)
    with tempfile.TemporaryDirectory(prefix="posttrain-league-") as folder:
        model, taken = train(trial, folder)
    return {"steps": taken} | _figures(model, trial, task, tuning)


def train(trial: Trial, folder: str) -> tuple[Any, int]:
    """The trained model, and how many steps it took."""
    method = methods.load(trial.method)
    card = method.card
    run = posttrain.train(
        method,
        **_start(card, trial.size),
        data=TASKS[trial.task].rows(card, problems(trial.seed)),
        learning_rate=trial.rate,
        seed=trial.seed,
        output=folder,
        overwrite=True,
        **budget(card),
        **_objects(card, trial.size),
        **_QUIET,
    )
    if run.interrupted:
        raise KeyboardInterrupt  # nothing is kept of it: the same command does it again
    return run.model, run.step


_QUIET: dict[str, Any] = {
    "cache": "off",
    "device": "cpu",
    "progress": "quiet",
    "report": False,
    "save_minutes": 0,
    "verify_saved": False,
}


def budget(card: Any) -> dict[str, Any]:
    """Steps and batch: the same rows for all methods on rows, the same number of sampled answers for all others."""
    if not card.online:
        return {"batch_size": BATCH, "steps": STEPS, "warmup_steps": WARMUP}
    group = card.defaults.get("group_size", 8)
    return {
        "batch_size": max(1, ANSWERS // group),
        "group_size": group,
        "steps": ROLLOUTS * card.defaults.get("updates_per_rollout", 1),
        "max_new_tokens": 6,
        "generation_batch_size": ANSWERS,
        "warmup_steps": WARMUP,
    }


def _start(card: Any, size: str) -> dict[str, Any]:
    """The model to begin with: a copy, or, where a head is to replace its vocabulary, its folder."""
    model, tokenizer = base(size)
    if {"reward-head", "step-head"} & set(card.needs):
        return {"model": _folder(size)}
    return {"model": copy.deepcopy(model), "tokenizer": tokenizer}


@functools.cache
def _folder(size: str) -> str:
    folder = tempfile.TemporaryDirectory(prefix="posttrain-league-base-")
    _KEPT.append(folder)
    for part in base(size):
        part.save_pretrained(folder.name)
    return folder.name


#: Folders that go with the process.
_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def _objects(card: Any, size: str) -> dict[str, Any]:
    """What a method is given beside its rows."""
    needs = {need.partition(" ")[0] for need in card.needs}
    found: dict[str, Any] = {}
    if {"rewards", "preferences"} & needs:
        found["reward"] = [is_sorted]
    if "teacher" in needs and "teacher_model" not in card.defaults:
        found["teacher"] = base(size, TEACHER)[0]
    return found


@functools.cache
def base(size: str, name: str = MODEL) -> tuple[Any, Any]:
    """The model that all runs begin with, or the teacher, with its tokenizer. Nobody may change it.

    The example's own models are kept on disk.
    """
    if size != "small":
        return made.make(name, SIZES[size])
    folder = made.resolve_example_model(name, Settings().model)
    return foreign.read(AutoModelForCausalLM, folder), foreign.read(AutoTokenizer, folder)


def _figures(model: Any, trial: Trial, task: Task, tuning: bool) -> dict[str, Any]:
    """The score, other figures, and the score problem by problem as digits, of the final figures alone."""
    measure: Callable[[Any, Trial, bool], tuple[list[float], dict[str, float]]] = _MEASURES[task.score]
    values, others = measure(model, trial, tuning)
    found: dict[str, Any] = {"score": round(sum(values) / len(values), 4)}
    found |= {name: round(value, 4) for name, value in others.items()}
    return found if tuning else found | {"values": "".join(str(round(value * DIGIT)) for value in values)}


def _right(model: Any, trial: Trial, tuning: bool) -> tuple[list[float], dict[str, float]]:
    """Share of sampled answers that are right, by problem; and of those that are the wrong way round."""
    chosen = held_out(tuning)
    wording = ASKED.get(trial.method, "{prompt}")
    rows = [{**row, "prompt": wording.replace("{prompt}", row["prompt"])} for row in chosen]
    found = _evaluate(
        model, trial, rows, reward=[is_sorted], samples=SAMPLES, max_new_tokens=6, seed=trial.seed, chat=False
    )
    answers = {row["prompt"]: row["answer"] for row in rows}
    turned = [line["completion"] == answers[line["text"]][::-1] for line in found.lines]
    others = {"turned": sum(turned) / len(turned)}
    if trial.task in ("pairs", "judged", "ranked", "forgetting") and not tuning and trial.method not in ASKED:
        likely = _evaluate(model, trial, make_rows("preference", chosen))
        others["likelier"] = likely.figures["accuracy"].mean
    return found.values["right"], others


def _pairs(model: Any, trial: Trial, tuning: bool) -> tuple[list[float], dict[str, float]]:
    """Share of pairs in the right order; Brier's score of the chance that the margin says."""
    rows = pairs(held_out(tuning))
    margins = torch.tensor(_evaluate(model, trial, rows).values["margin"])  # (P,)
    if not hasattr(model, "score"):  # an implicit judge: what the policy learnt beside what it began with
        margins = margins - torch.tensor(_base_margins(trial.size, tuning))
    order = [0.5 if one == 0 else float(one > 0) for one in margins.tolist()]
    return order, {"brier": float(((1 - margins.double().sigmoid()) ** 2).mean())}


@functools.cache
def _base_margins(size: str, tuning: bool) -> list[float]:
    trial = Trial("", "judges", size, 0, 0.0)
    return _evaluate(base(size)[0], trial, pairs(held_out(tuning))).values["margin"]


def _steps(model: Any, trial: Trial, tuning: bool) -> tuple[list[float], dict[str, float]]:
    """Share of pairs of a right and a wrong step of one answer that are in order; Brier's score of all steps."""
    rows = steps(held_out(tuning))
    tokenizer = base(trial.size)[1]
    found = step_probabilities(
        model.eval(), [encode_steps(tokenizer, row["prompt"], "\n".join(row["completions"])) for row in rows], 64
    )
    values, misses = [], []
    for row, chances in zip(rows, found, strict=True):
        good = [one for one, label in zip(chances, row["labels"], strict=True) if label]
        bad = [one for one, label in zip(chances, row["labels"], strict=True) if not label]
        order = [0.5 if a == b else float(a > b) for a in good for b in bad]
        misses += [(one - label) ** 2 for one, label in zip(chances, row["labels"], strict=True)]
        if order:  # the very first step may be wrong
            values.append(sum(order) / len(order))
    return values, {"brier": sum(misses) / len(misses)}


_MEASURES: dict[str, Any] = {"right": _right, "pairs": _pairs, "steps": _steps}


def _evaluate(model: Any, trial: Trial, rows: list[dict[str, Any]], **options: Any) -> SetResult:
    found = posttrain.evaluate(
        model,
        tokenizer=base(trial.size)[1],
        data=rows,
        say=lambda text: None,
        cache="off",
        device="cpu",
        **options,
    )
    return found.sets[""]

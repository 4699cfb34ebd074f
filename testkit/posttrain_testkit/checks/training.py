"""Training checks: whole runs of a tiny model on the CPU, through the public interface."""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from posttrain import api
from transformers.utils import logging

from posttrain_testkit.families import FAMILIES, Family
from posttrain_testkit.registry import CheckFailed, check
from posttrain_testkit.rollouts import plans_of
from posttrain_testkit.subject import Subject
from posttrain_testkit.tiny import (
    answer_scores,
    count_of_a,
    head_of,
    more_of_a,
    teacher_gap,
)

#: Optimiser steps of the longer runs.
STEPS = 16
#: Step at which the resumed run was stopped.
HALF = STEPS // 2
#: Seed of the model that is trained.
SEED = 1234
#: Options of runs whose first losses are compared; the longer runs cover the files on disk.
_SHORT: dict[str, Any] = {"steps": 2, "save_every": None, "verify_saved": False, "dtype": "float64"}

_STATE_CAUSE = (
    "Usual cause: a variable of the module that outlives the step. State belongs in the hook's state argument."
)


@dataclass(frozen=True)
class Outcome:
    """A finished tiny run: its metric lines, and the models before and after."""

    lines: list[dict[str, Any]]
    path: Path
    start: Any
    model: Any
    family: Family
    teacher: Any = None

    def scores(self, head: str) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
        """Return the model's scores of right and wrong answers, before and after."""
        encode = self.family.encode
        return answer_scores(self.start, head, encode), answer_scores(self.model, head, encode)

    @property
    def gaps(self) -> tuple[float, float]:
        """Divergence of the teacher from the model before and after."""
        encode = self.family.encode
        return teacher_gap(self.start, self.teacher, encode), teacher_gap(self.model, self.teacher, encode)

    def has(self, name: str) -> bool:
        """Whether any step has this metric."""
        return any(name in line for line in self.lines)

    def mean(self, name: str, lines: slice) -> float:
        """Return the mean of a metric over some of the steps that have it; rewards come with new rollouts only."""
        values = [line[name] for line in self.lines if name in line][lines]
        return sum(values) / len(values)


@check("training")
def check_promise_holds(subject: Subject) -> None:
    """Full fine-tuning of a tiny model does what the schema promises: loss falls, margin or reward rises."""
    _check_promise(subject, _train(subject, **_enough(subject)))


@check("training")
def check_promise_holds_with_lora(subject: Subject) -> None:
    """Fine-tuning of a tiny model with LoRA does what the schema promises."""
    _check_promise(subject, _train(subject, lora=True, **({"save_every": None} | _enough(subject))))


@check("training")
def check_same_seed_same_bits(subject: Subject) -> None:
    """Two runs with the same seed agree in every bit, however often they write to disk."""
    _compare(
        _train(subject),
        _train(subject, save_every=None, samples_per_step=1, verify_saved=False),
        "in a second run with the same seed",
        "Usual cause: numbers from the clock, from a generator without the run's seed, or from the order of a set.",
    )


@check("training")
def check_resume_equals_uninterrupted(subject: Subject) -> None:
    """A run that is resumed half-way agrees in every bit with an uninterrupted one."""
    steps = _family(subject).resumed
    whole = _train(subject, **({} if steps == STEPS else {"steps": steps, "save_every": steps // 2}))
    folder = _folder(subject) / "resumed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole.path, folder)
    shutil.rmtree(folder / "checkpoints" / f"step-{steps}")
    objects = _objects(subject)
    with _quiet():
        run = api.resume(folder, **objects)
    found = Outcome(list(run.metrics), folder, whole.start, run.model, whole.family)
    _compare(whole, found, f"after it was resumed at step {steps // 2}", _STATE_CAUSE)


@check("training")
def check_accumulation_does_not_matter(subject: Subject) -> None:
    """Micro-batches of one example give the losses and gradient norms of whole batches, in float64."""
    _compare(
        _train(subject, **_SHORT),
        _train(subject, **_SHORT, micro_batch_size=1),
        "with micro-batches of one example",
        "Usual cause: a mean, a sort or a baseline over the micro-batch. What couples examples belongs in a hook that "
        "sees the whole step.",
        _family(subject).tolerance,
    )


@check("training")
def check_layout_does_not_matter(subject: Subject) -> None:
    """Packed rows and padded rows give the same losses, in float64."""
    _compare(
        _train(subject, **_SHORT),
        _train(subject, **_SHORT, packing=False, head_chunk_tokens=3),
        "without packing",
        "Usual cause: a loss that reads its neighbours, or a token statistic that reads its chunk.",
        _family(subject).tolerance,
    )


@check("training")
def check_evaluation_does_not_matter(subject: Subject) -> None:
    """Evaluating between the steps changes no step."""
    rows = _family(subject).rows(subject.card)[:5]
    _compare(
        _train(subject, **_SHORT),
        _train(subject, **_SHORT, eval_data=rows, eval_every=1),
        "with an evaluation after each step",
        "Usual cause: random numbers from a global generator, or counters that evaluation moves too.",
    )


def _enough(subject: Subject) -> dict[str, Any]:
    """Return more steps for methods that take several on one batch of rollouts: the promise needs new rollouts."""
    updates = subject.card.defaults.get("updates_per_rollout", 1)
    return {"steps": STEPS * updates, "save_every": None} if updates > 1 else {}


def _check_promise(subject: Subject, run: Outcome) -> None:
    schema = subject.card.schemas[0]
    if run.teacher is not None and "rewards" not in subject.card.needs:
        before, after = run.gaps
        _check_rises("closeness to the teacher (minus the divergence)", -before, -after, 0.1 * before)
    elif subject.card.online and run.has("reward") and (_rewarded(subject) or _risen(run) >= 0.1):
        _check_rises("mean reward", run.mean("reward", slice(3)), run.mean("reward", slice(-3, None)), 0.1)
    elif subject.card.online:
        _check_rises("loss below 0", -run.mean("loss", slice(3)), -run.mean("loss", slice(-3, None)), 0.0)
    elif schema in ("preference", "unpaired-preference", "ranked", "scored", "forget-retain"):
        before, after = _margins(subject, run)
        _check_rises("margin of the right answers over the wrong ones", before, after, 0.1)
    elif schema in ("prompt-completion", "language-modeling", "trajectory"):
        rights = [sum(good for good, _ in scores) / len(scores) for scores in run.scores(head_of(subject.method))]
        _check_rises("log-probability of the right answers", rights[0], rights[1], 0.5)
        # A weighted loss may rise while the losses that it weights fall, or fall while tokens of low weight get worse.
        falls = {
            name: run.mean(name, slice(3)) - run.mean(name, slice(-3, None))
            for name in ("loss", "nll")
            if run.has(name)
        }
        falling = max(falls, key=lambda name: falls[name])
        _check_rises(f"{falling} below 0", -run.mean(falling, slice(3)), -run.mean(falling, slice(-3, None)), 0.1)
    elif schema == "stepwise":
        before, after = _margins(subject, run)
        _check_rises("margin of right steps over wrong ones", before, after, 0.1)
    else:
        first = run.mean("loss", slice(3))
        _check_rises("loss below 0", -first, -run.mean("loss", slice(-3, None)), 0.05 * abs(first))


def _rewarded(subject: Subject) -> bool:
    """Whether rewards must rise: they are the training signal, and belong to the policy's own samples."""
    asks = [ask for plan in plans_of(subject.method, [1]) for ask in plan]
    return not _teaches_itself(subject) and any(ask.source == "policy" or ask.mixture > 0 for ask in asks)


def _risen(run: Outcome) -> float:
    return run.mean("reward", slice(-3, None)) - run.mean("reward", slice(3))


def _margins(subject: Subject, run: Outcome) -> list[float]:
    """Return the mean margin of the right answers over the wrong ones, before and after."""
    return [sum(good - bad for good, bad in scores) / len(scores) for scores in run.scores(head_of(subject.method))]


def _check_rises(what: str, before: float, after: float, least: float) -> None:
    if not after - before >= least:
        raise CheckFailed(
            f"In {STEPS} batches the {what} went from {before:.4g} to {after:.4g}; it has to rise by {least:.3g}.",
            "Usual cause: a sign, or a default option that makes the method learn nothing.",
        )


def _compare(expected: Outcome, found: Outcome, what: str, cause: str, tolerance: float = 0.0) -> None:
    """Raise CheckFailed at the first step where a number of the two runs differs."""
    if len(found.lines) != len(expected.lines):
        raise CheckFailed(f"{len(expected.lines)} steps became {len(found.lines)} {what}.", cause)
    for one, other in zip(expected.lines, found.lines, strict=True):
        names = {name for name in one.keys() | other.keys() if not name.startswith("eval_") and not _is_cost(name)}
        names = names & set(expected.family.compared) if tolerance and expected.family.compared else names
        for name in sorted(names, key=lambda name: (name != "loss", name)):
            before, after = one.get(name, math.nan), other.get(name, math.nan)
            if not _equal(before, after, tolerance):
                raise CheckFailed(f"Step {one['step']}: {name} is {before:.10g}, and {after:.10g} {what}.", cause)


def _is_cost(name: str) -> bool:
    """Whether a metric is a time or memory, which differ between any two runs."""
    return name.endswith(("seconds", "per_second", "memory_mb"))


def _equal(one: float, other: float, tolerance: float) -> bool:
    if math.isnan(one) and math.isnan(other):
        return True
    return one == other or abs(one - other) <= tolerance * max(1.0, abs(one))


def _train(subject: Subject, **changes: Any) -> Outcome:
    """Return a tiny run with the method's default options; one run a subject for the same ``changes``."""
    key = f"run {sorted(changes.items(), key=lambda item: item[0])}"
    if key not in subject.memory:
        subject.memory[key] = _new_run(subject, changes)
    return subject.memory[key]


def _new_run(subject: Subject, changes: dict[str, Any]) -> Outcome:
    dtype = torch.float64 if changes.get("dtype") == "float64" else torch.float32
    objects = _objects(subject, dtype)
    keywords: dict[str, Any] = {
        "batch_size": 4,
        "steps": STEPS,
        "learning_rate": 1e-2,
        "schedule": "constant",
        "save_every": HALF,
        "progress": "quiet",
        "cache": "off",
        "device": "cpu",
        **_family(subject).options,
    }
    if subject.card.online:
        keywords |= {"group_size": 8, "max_new_tokens": 6}
    path = Path(tempfile.mkdtemp(prefix="run-", dir=_folder(subject)))
    start = _family(subject).model(head_of(subject.method), dtype, SEED)
    with _quiet():
        run = api.train(subject.source or subject.name, output=str(path), **objects, **(keywords | changes))
    return Outcome(list(run.metrics), path, start, run.model, _family(subject), objects.get("teacher"))


def _objects(subject: Subject, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Build model, tokenizer, rows, reward and teacher anew: a run changes its model."""
    family = _family(subject)
    objects: dict[str, Any] = {
        "model": family.model(head_of(subject.method), dtype, SEED),
        "tokenizer": family.tokenizer(),
        "data": family.rows(subject.card),
    }
    if {"rewards", "preferences"} & set(subject.card.needs):
        objects["reward"] = [count_of_a]
    if "preferences" in subject.card.needs:
        objects["judge"] = more_of_a
    teacher = _teacher_of(subject, dtype)
    return objects | ({"teacher": teacher} if teacher is not None else {})


def _teacher_of(subject: Subject, dtype: torch.dtype = torch.float32) -> Any:
    """Build a tiny teacher with other weights; None where the method needs none, or is its own."""
    needs = subject.method.card.needs_now("teacher", subject.method.config({}))
    if not needs or "teacher_model" in subject.card.defaults:
        return None
    return _family(subject).model("vocabulary", dtype, 77)


def _family(subject: Subject) -> Family:
    return FAMILIES[subject.family]


def _teaches_itself(subject: Subject) -> bool:
    """True for self-distillation, where a tiny untrained model cannot be expected to improve."""
    return subject.method.card.needs_now("teacher", subject.method.config({})) and _teacher_of(subject) is None


def _folder(subject: Subject) -> Path:
    """Return a temporary folder that lasts as long as the subject."""
    if "folder" not in subject.memory:
        folder = Path(tempfile.mkdtemp(prefix="posttrain-check-"))
        weakref.finalize(subject, shutil.rmtree, folder, ignore_errors=True)
        subject.memory["folder"] = folder
    return subject.memory["folder"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' progress bars for files of some kilobytes."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()

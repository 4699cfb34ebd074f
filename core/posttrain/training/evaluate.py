"""Evaluation on held-out rows: the training loss, or for online methods the reward of greedy completions."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Protocol

from posttrain.contract.views import Example, Step
from posttrain.training.annotate import annotate
from posttrain.training.step import evaluate_loss

if TYPE_CHECKING:
    from posttrain.training.run import Compute, Plan, Progress


class Evaluation(Protocol):
    """Computes metrics of the current policy, by name without prefix."""

    def __call__(self, compute: Compute, progress: Progress) -> dict[str, float]:
        """Evaluate the current policy."""


class HeldOutLoss:
    """Mean loss and metrics over the held-out rows, each row counted once whatever the number of ranks (D5)."""

    def __init__(self, data: Sequence[Example], batches: int | None, batch_size: int):
        self.data, self.batch_size = data, batch_size
        self.count = len(data) if batches is None else min(len(data), batches * batch_size)

    def __call__(self, compute: Compute, progress: Progress) -> dict[str, float]:
        """Return the loss, its terms if there are several, and the method's metrics."""
        cache = compute.reference.cache if compute.reference is not None else None
        with nullcontext() if cache is None else cache.evaluation_scope():
            return self._measured(compute, Step(progress.step, progress.total))

    def _measured(self, compute: Compute, step: Step) -> dict[str, float]:
        everyone = [self.data[i] for i in range(self.count)]
        state = copy.deepcopy(compute.state)
        for start in range(0, self.count, self.batch_size):
            annotate(compute, everyone[start : start + self.batch_size])
        compute.state.clear()
        compute.state.update(state)  # an evaluation must not change the training state (D3)
        outcome = evaluate_loss(compute, compute.strategy.scatter(everyone), step)
        terms = outcome.terms if len(outcome.terms) > 1 else {}
        return {"loss": outcome.loss, **terms, **outcome.metrics}


class EvaluationSets:
    """Several named sets of held-out rows, each evaluated alone; the set's name prefixes its metrics.

    If every set has a name, a metric without one is the mean over the sets that have it.
    """

    def __init__(self, sets: Mapping[str, Evaluation]):
        self.sets = sets

    def __call__(self, compute: Compute, progress: Progress) -> dict[str, float]:
        """Return all metrics: ``loss``, ``math_loss``, ``chat_loss``."""
        found = {name: evaluation(compute, progress) for name, evaluation in self.sets.items()}
        common = found.pop("", None)
        if common is None:
            names = dict.fromkeys(metric for metrics in found.values() for metric in metrics)
            common = {name: _mean([metrics[name] for metrics in found.values() if name in metrics]) for name in names}
        return common | {f"{name}_{metric}": v for name, metrics in found.items() for metric, v in metrics.items()}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def evaluation_of(sets: Mapping[str, Evaluation]) -> Evaluation | None:
    """Return the evaluation of these sets of held-out rows; None without sets."""
    if not sets:
        return None
    return sets[""] if list(sets) == [""] else EvaluationSets(sets)


def held_out_examples(evaluation: Evaluation | None) -> list[Example]:
    """Return the examples of an evaluation by loss; none for one that samples answers."""
    sets = evaluation.sets.values() if isinstance(evaluation, EvaluationSets) else [evaluation]
    return [one.data[index] for one in sets if isinstance(one, HeldOutLoss) for index in range(one.count)]


def is_better(plan: Plan, progress: Progress, found: dict[str, float]) -> bool:
    """Update the best metric; return True if ``found`` is a new best."""
    name, higher = best_metric(plan)
    value = found.get(name)
    if value is None:
        return False
    if not math.isfinite(value):
        value = -math.inf if higher else math.inf  # worse than any number
    old = progress.best.get("value")
    better = old is None or (value > old if higher else value < old)
    if better:
        progress.best = {"value": value, "step": progress.step, "since": 0}
    else:
        progress.best["since"] += 1
    return better


def best_metric(plan: Plan) -> tuple[str, bool]:
    """Return the name of the deciding metric, and whether higher is better."""
    name = plan.settings.watch.best_metric or ("-eval_reward" if plan.card.online else "eval_loss")
    return (name[1:], True) if name.startswith("-") else (name, False)

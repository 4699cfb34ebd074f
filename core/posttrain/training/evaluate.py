"""Evaluation on held-out rows: the same loss, or for online methods the reward of greedy completions."""

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
    from posttrain.training.run import Plan, Progress, Run


class Evaluation(Protocol):
    """Gives the metrics of the policy as it is now, by name without prefix."""

    def __call__(self, run: Run) -> dict[str, float]:
        """Run it."""


class HeldOutLoss:
    """Mean loss and metrics over the held-out rows, each row counted once whatever the number of ranks (D5)."""

    def __init__(self, data: Sequence[Example], batches: int | None, batch_size: int):
        self.data, self.batch_size = data, batch_size
        self.count = len(data) if batches is None else min(len(data), batches * batch_size)

    def __call__(self, run: Run) -> dict[str, float]:
        """Loss, its terms where there are several, and the method's metrics."""
        cache = run.compute.reference.cache if run.compute.reference is not None else None
        with nullcontext() if cache is None else cache.evaluation_scope():
            return self._measured(run)

    def _measured(self, run: Run) -> dict[str, float]:
        everyone = [self.data[i] for i in range(self.count)]
        state = copy.deepcopy(run.compute.state)
        for start in range(0, self.count, self.batch_size):
            annotate(run.compute, everyone[start : start + self.batch_size])
        run.compute.state.clear()
        run.compute.state.update(state)  # what an evaluation sees must not move the training (D3)
        outcome = evaluate_loss(
            run.compute, run.compute.strategy.scatter(everyone), Step(run.progress.step, run.progress.total)
        )
        terms = outcome.terms if len(outcome.terms) > 1 else {}
        return {"loss": outcome.loss, **terms, **outcome.metrics}


class EvaluationSets:
    """Several sets of held-out rows under names, each evaluated by itself; its name goes before its metrics.

    Where every set has a name, a metric without one is the mean over the sets that have it.
    """

    def __init__(self, sets: Mapping[str, Evaluation]):
        self.sets = sets

    def __call__(self, run: Run) -> dict[str, float]:
        """All metrics: ``loss``, ``math_loss``, ``chat_loss``."""
        found = {name: evaluation(run) for name, evaluation in self.sets.items()}
        common = found.pop("", None)
        if common is None:
            names = dict.fromkeys(metric for metrics in found.values() for metric in metrics)
            common = {name: _mean([metrics[name] for metrics in found.values() if name in metrics]) for name in names}
        return common | {f"{name}_{metric}": v for name, metrics in found.items() for metric, v in metrics.items()}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def evaluation_of(sets: Mapping[str, Evaluation]) -> Evaluation | None:
    """The evaluation of these sets of held-out rows; None for none."""
    if not sets:
        return None
    return sets[""] if list(sets) == [""] else EvaluationSets(sets)


def held_out_examples(evaluation: Evaluation | None) -> list[Example]:
    """The examples whose loss an evaluation takes; none where it samples answers."""
    sets = evaluation.sets.values() if isinstance(evaluation, EvaluationSets) else [evaluation]
    return [one.data[index] for one in sets if isinstance(one, HeldOutLoss) for index in range(one.count)]


def is_better(plan: Plan, progress: Progress, found: dict[str, float]) -> bool:
    """Keep the books of the best metric; True where ``found`` holds a new best."""
    name, higher = best_metric(plan)
    value = found.get(name)
    if value is None:
        return False
    if not math.isfinite(value):
        value = -math.inf if higher else math.inf  # worse than anything, whatever came before
    old = progress.best.get("value")
    better = old is None or (value > old if higher else value < old)
    if better:
        progress.best = {"value": value, "step": progress.step, "since": 0}
    else:
        progress.best["since"] += 1
    return better


def best_metric(plan: Plan) -> tuple[str, bool]:
    """Name of the deciding metric, and whether higher is better."""
    name = plan.settings.watch.best_metric or ("-eval_reward" if plan.card.online else "eval_loss")
    return (name[1:], True) if name.startswith("-") else (name, False)

"""Evaluation on held-out rows: the same loss, or for online methods the reward of greedy completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from posttrain.engine.step import evaluate_loss
from posttrain.views import Example, Step

if TYPE_CHECKING:
    from posttrain.engine.run import Run


class Evaluation(Protocol):
    """Gives the metrics of the policy as it is now, by name without prefix."""

    def __call__(self, run: Run) -> dict[str, float]:
        """Run it."""


class HeldOutLoss:
    """Mean loss and metrics over the held-out rows, each row counted once whatever the number of ranks (D5)."""

    def __init__(self, data: Sequence[Example], batches: int | None, batch_size: int):
        self.data = data if batches is None else [data[i] for i in range(min(len(data), batches * batch_size))]

    def __call__(self, run: Run) -> dict[str, float]:
        """Loss, its terms where there are several, and the method's metrics."""
        examples = run.strategy.share([self.data[i] for i in range(len(self.data))])
        outcome = evaluate_loss(run, examples, Step(run.step, run.total))
        terms = outcome.terms if len(outcome.terms) > 1 else {}
        return {"loss": outcome.loss, **terms, **outcome.metrics}


def is_better(run: Run, found: dict[str, float]) -> bool:
    """Keep the books of the best metric; True where ``found`` holds a new best."""
    name, higher = best_metric(run)
    value = found.get(name)
    if value is None:
        return False
    old = run.best.get("value")
    better = old is None or (value > old if higher else value < old)
    if better:
        run.best = {"value": value, "step": run.step, "since": 0}
    else:
        run.best["since"] += 1
    return better


def best_metric(run: Run) -> tuple[str, bool]:
    """Name of the deciding metric, and whether higher is better."""
    name = run.settings.best_metric or ("-eval_reward" if run.card.online else "eval_loss")
    return (name[1:], True) if name.startswith("-") else (name, False)

"""Reduction of losses: unreduced losses become one scalar whose gradient does not depend on the split.

The core reduces, never the method. Every denominator is that of the whole optimiser step, all micro-batches and all
ranks, and is known before the first backward pass. A micro-batch contributes its sum divided by the step's count, and
contributions add up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from posttrain.contract.views import Example, PerToken
from posttrain.errors import PluginError


@dataclass
class Totals:
    """Counts of a whole optimiser step: examples, and unmasked tokens of each mask by name."""

    examples: float = 0.0
    tokens: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Totals:
        """Count the trained tokens per role, and the True entries of per-token columns that are masks."""
        totals = cls()
        for example in examples:
            totals.examples += 1
            for role, sequences in example.sequences.items():
                for sequence in sequences:
                    totals._add(role, sequence.count)
                    for name, column in sequence.per_token.items():
                        if column.dtype == torch.bool:
                            totals._add(name, int(column.sum()))
        return totals

    def _add(self, name: str, count: int) -> None:
        self.tokens[name] = self.tokens.get(name, 0.0) + count


def reduce_loss(
    terms: dict[str, Tensor | PerToken], masks: dict[str, Tensor], totals: Totals, examples: int, method: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return this micro-batch's share of the step's loss.

    ``masks`` are the micro-batch's masks by their names in ``totals``. Returns the scalar to call backward on and each
    term's detached share; their sums over all micro-batches and ranks are the loss of the step.
    """
    shares = {}
    for name, term in terms.items():
        if isinstance(term, PerToken):
            count = totals.tokens[_count_of(term, masks, method, name)]
            values = torch.where(term.mask, term.values, torch.zeros_like(term.values))
            shares[name] = values.sum() / max(count, 1.0)
        else:
            _check_examples(term, examples, method, name)
            shares[name] = term.sum() / max(totals.examples, 1.0)
    total = torch.stack([share.float() if share.dtype != torch.float64 else share for share in shares.values()]).sum()
    return total, {name: share.detach() for name, share in shares.items()}


def _check_examples(term: Any, examples: int, method: str, name: str) -> None:
    if not isinstance(term, Tensor) or term.shape != (examples,):
        shape = tuple(term.shape) if isinstance(term, Tensor) else type(term).__name__
        raise PluginError(
            f"posttrain_loss of '{method}' returned {shape} for '{name}' with {examples} examples. "
            f"A loss is unreduced: a tensor of shape ({examples},), or PerToken(values, mask); leave out "
            ".mean() and .sum()."
        )


def _count_of(term: PerToken, masks: dict[str, Tensor], method: str, name: str) -> str:
    if term.values.shape != term.mask.shape:
        raise PluginError(
            f"posttrain_loss of '{method}' returned PerToken with values {tuple(term.values.shape)} and mask "
            f"{tuple(term.mask.shape)} for '{name}'. Both have the shape (B, T) of a view."
        )
    same = [key for key, mask in masks.items() if mask is term.mask]
    if same:
        return same[0]
    # A method's own mask keeps the count of the view that it belongs to, where there is only one such view.
    if "completion" not in masks or masks["completion"].shape != term.mask.shape:
        raise PluginError(
            f"posttrain_loss of '{method}' returned PerToken for '{name}' with a mask that belongs to no view. "
            f"Use the mask of a view or a column as it is: {', '.join(masks)}."
        )
    return "completion"


class Averages:
    """Means of metrics over everything added, each in its own unit: (sum, count) by name."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, float]] = {}

    def add(self, metrics: dict[str, Tensor | PerToken]) -> None:
        """Add a micro-batch's metrics, without NaN entries."""
        for name, metric in metrics.items():
            if isinstance(metric, PerToken):
                values = metric.values.detach().double()[metric.mask.bool()]
            else:
                values = torch.as_tensor(metric).detach().double().reshape(-1)
            values = values[~values.isnan()]
            total, count = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = (total + float(values.sum()), count + values.numel())

    def result(self) -> dict[str, float]:
        """Return the mean by name; names without values are left out."""
        return {name: total / count for name, (total, count) in self.sums.items() if count}

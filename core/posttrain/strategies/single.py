"""One process, one device."""

from __future__ import annotations

from typing import Any

from torch import nn

from posttrain.engine.reduction import Averages, Totals
from posttrain.strategies.protocol import norm_of


class Single:
    """Nothing to share, nothing to sum."""

    name = "single"
    rank = 0
    world = 1

    def prepare(self, model: nn.Module) -> None:
        """The only copy is the right one."""

    def share(self, items: list[Any]) -> list[Any]:
        """Everything."""
        return items

    def gather(self, items: list[Any]) -> list[Any]:
        """Everything."""
        return items

    def sum_totals(self, totals: Totals) -> Totals:
        """As they are."""
        return totals

    def sum_gradients(self, parameters: list[nn.Parameter]) -> None:
        """As they are."""

    def gradient_norm(self, parameters: list[nn.Parameter]) -> float:
        """Norm over all parameters that have a gradient."""
        return norm_of([p.grad for p in parameters if p.grad is not None])

    def sum_results(self, terms: dict[str, float], averages: Averages) -> tuple[dict[str, float], Averages]:
        """As they are."""
        return terms, averages

    def sum_number(self, value: float) -> float:
        """As it is."""
        return value

    def barrier(self) -> None:
        """Nobody to wait for."""

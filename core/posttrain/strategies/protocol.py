"""What the loop asks of a strategy. Gradients are sums of shares whose denominators are global (4.1)."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from posttrain.engine.reduction import Averages, Totals


class Strategy(Protocol):
    """``rank`` of ``world`` processes; rank 0 writes files and speaks."""

    name: str
    rank: int
    world: int

    def prepare(self, model: nn.Module) -> None:
        """Make every rank start from the same weights."""

    def share(self, items: list[Any]) -> list[Any]:
        """This rank's part of a step's items, in an order that ``gather`` undoes."""

    def gather(self, items: list[Any]) -> list[Any]:
        """All ranks' items in the order that ``share`` took them from, on every rank."""

    def sum_totals(self, totals: Totals) -> Totals:
        """Counts of all ranks together."""

    def sum_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Add up the gradients of all ranks."""

    def gradient_norm(self, parameters: list[nn.Parameter]) -> float:
        """Norm of the whole gradient."""

    def sum_results(self, terms: dict[str, float], averages: Averages) -> tuple[dict[str, float], Averages]:
        """Loss shares and metric sums of all ranks together."""

    def sum_number(self, value: float) -> float:
        """One number of all ranks together."""

    def barrier(self) -> None:
        """Wait for every rank."""


def norm_of(gradients: list[Tensor]) -> float:
    """Root of the sum of squares, in float32 or better."""
    total = 0.0
    for gradient in gradients:
        total += float(
            gradient.double().pow(2).sum() if gradient.dtype.itemsize == 8 else gradient.float().pow(2).sum()
        )
    return total**0.5

"""What the engine asks of a strategy. Gradients are sums of shares whose denominators are global (4.1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from posttrain.training.reduction import Averages, Totals

if TYPE_CHECKING:
    from posttrain.network.token_model import TokenModel
    from posttrain.settings import OptimSettings
    from posttrain.training.run import Compute


class Strategy(Protocol):
    """``rank`` of ``world`` processes; rank 0 writes files and speaks. Every rank calls every method, in one order."""

    name: str
    rank: int
    world: int
    data_rank: int
    """This process's place among the ``parts`` that share the data; several processes may hold one part together."""
    data_size: int
    shards_forward: bool
    """Whether weights are spread, so that a forward or backward pass needs all ranks at the same time."""
    handles_autocast: bool
    """Whether the strategy computes in bfloat16 by itself; then there is no autocast around a pass."""

    def prepare(self, model: TokenModel) -> None:
        """Place the policy or a frozen model: afterwards all ranks have, or share, rank 0's weights."""

    def optimizer(self, model: TokenModel, settings: OptimSettings) -> Optimizer:
        """The optimiser over a prepared model's trained parameters."""

    def clear(self, optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
        """Begin a step: no gradients."""

    def synchronised_passes(self, count: int) -> int:
        """Passes that this rank must make where it has work for ``count``: the most of any rank if ``together``."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add up the gradient of a share of the loss; ``last``: of the last one of this step."""

    def update(self, optimizer: Optimizer, parameters: list[nn.Parameter], limit: float, finite: bool) -> float:
        """Sum the gradients over the ranks, scale them down to the norm ``limit`` (0: any), let the optimiser step.

        Returns the norm of the whole gradient before that. No step where it, or the loss (``finite``), is no number.
        """

    def gathered(self, *models: TokenModel) -> AbstractContextManager[None]:
        """A block in which each rank has all weights of ``models`` and may run them alone, as a generator does."""

    def weights(self, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Name and whole tensor of each parameter of ``module``, one in memory at a time; all ranks iterate."""

    def save(self, compute: Compute, folder: Path) -> None:
        """Write weights and optimiser state into ``folder``, which exists."""

    def load(self, compute: Compute, folder: Path) -> None:
        """Undo ``save``, also where another number of ranks or another strategy saved. Raises CheckpointError."""

    def scatter(self, items: list[Any]) -> list[Any]:
        """This rank's part of a step's items, in an order that ``gather`` undoes."""

    def gather(self, items: list[Any]) -> list[Any]:
        """All parts' items in the order that ``share`` took them from, on every rank."""

    def sum_totals(self, totals: Totals) -> Totals:
        """Counts of all parts together."""

    def sum_results(self, terms: dict[str, float], averages: Averages) -> tuple[dict[str, float], Averages]:
        """Loss shares and metric sums of all parts together."""

    def sum_number(self, value: float) -> float:
        """One number of all parts together."""

    def everyone(self, item: Any) -> list[Any]:
        """Return each rank's ``item``, in the order of ranks, on every rank."""

    def barrier(self) -> None:
        """Wait for every rank."""

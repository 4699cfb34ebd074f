"""Protocol of strategies. Gradients are sums of shares whose denominators are global (4.1)."""

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
    """``rank`` of ``world`` processes; rank 0 writes files and logs. Every rank calls every method, in one order."""

    name: str
    rank: int
    world: int
    data_rank: int
    """Data-parallel rank among ``data_size``; several processes may hold one part of the data together."""
    data_size: int
    shards_forward: bool
    """Whether weights are sharded, so that a forward or backward pass needs all ranks at the same time."""
    handles_autocast: bool
    """Whether the strategy computes in bfloat16 by itself, without autocast around a pass."""

    def prepare(self, model: TokenModel) -> None:
        """Place the policy or a frozen model: afterwards all ranks have, or shard, rank 0's weights."""

    def optimizer(self, model: TokenModel, settings: OptimSettings) -> Optimizer:
        """Build the optimiser over a prepared model's trained parameters."""

    def clear(self, optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
        """Clear the gradients before a step."""

    def synchronised_passes(self, count: int) -> int:
        """Return the passes that this rank must run for ``count`` of its own: with ``shards_forward`` the maximum of
        all."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate the gradient of a share of the loss; ``last`` for the step's last share."""

    def update(self, optimizer: Optimizer, parameters: list[nn.Parameter], limit: float, finite: bool) -> float:
        """Sum the gradients over the ranks, clip them to the norm ``limit`` (0: none), and update the weights.

        Returns the norm of the whole gradient before clipping. No update where it, or the loss (``finite``), is not
        finite.
        """

    def gathered(self, *models: TokenModel) -> AbstractContextManager[None]:
        """Return a context in which each rank has all weights of ``models`` and may run them alone."""

    def weights(self, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield name and whole tensor of each parameter of ``module``, one in memory at a time; all ranks iterate."""

    def save(self, compute: Compute, folder: Path) -> None:
        """Write weights and optimiser state into the existing ``folder``."""

    def load(self, compute: Compute, folder: Path) -> None:
        """Restore what ``save`` wrote, also with other ranks or another strategy. Raises CheckpointError."""

    def scatter(self, items: list[Any]) -> list[Any]:
        """Return this rank's part of a step's items, in an order that ``gather`` undoes."""

    def gather(self, items: list[Any]) -> list[Any]:
        """Return all parts' items in the order before ``scatter``, on every rank."""

    def sum_totals(self, totals: Totals) -> Totals:
        """Sum counts over all parts."""

    def sum_results(self, terms: dict[str, float], averages: Averages) -> tuple[dict[str, float], Averages]:
        """Sum loss shares and metric sums over all parts."""

    def sum_number(self, value: float) -> float:
        """Sum one number over all parts."""

    def everyone(self, item: Any) -> list[Any]:
        """Return each rank's ``item``, in the order of ranks, on every rank."""

    def barrier(self) -> None:
        """Wait for every rank."""

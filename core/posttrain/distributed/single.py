"""Strategy of one process on one device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from posttrain.distributed.replicated import clip_and_step, load_whole, norm_of, save_whole
from posttrain.network.kernels.cpu.gradient_buffers import clear_gradients, close_gradients
from posttrain.training.optim import build_optimizer, reserve_moments
from posttrain.training.reduction import Averages, Totals

if TYPE_CHECKING:
    from posttrain.network.token_model import TokenModel
    from posttrain.settings import OptimSettings
    from posttrain.training.run import Compute


class Single:
    """One process: nothing is sharded or summed."""

    name = "single"
    rank = data_rank = 0
    world = data_size = 1
    shards_forward = handles_autocast = False

    def __init__(self, *sections: object) -> None:
        """Ignore the sections of the settings, which every strategy is built with."""

    def prepare(self, model: TokenModel) -> None:
        """No-op: there is one copy."""

    def optimizer(self, model: TokenModel, settings: OptimSettings) -> Optimizer:
        """Build the plain optimiser."""
        return build_optimizer(model, settings)

    def clear(self, optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
        """Zero the gradients, keeping their memory (see ``gradient_buffers``)."""
        reserve_moments(optimizer)
        clear_gradients(parameters)

    def synchronised_passes(self, count: int) -> int:
        """Return ``count``."""
        return count

    def backward(self, loss: Tensor, last: bool) -> None:
        """Call ``loss.backward()``."""
        loss.backward()

    def update(self, optimizer: Optimizer, parameters: list[nn.Parameter], limit: float, finite: bool) -> float:
        """Clip and step."""
        close_gradients(parameters)
        norm = norm_of([p.grad for p in parameters if p.grad is not None])
        return clip_and_step(optimizer, parameters, norm, limit, finite)

    def gathered(self, *models: TokenModel) -> AbstractContextManager[None]:
        """No-op: weights are never sharded."""
        return nullcontext()

    def weights(self, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield parameters unchanged."""
        for name, parameter in module.named_parameters():
            yield name, parameter.detach()

    def save(self, compute: Compute, folder: Path) -> None:
        """Write whole files."""
        save_whole(compute, folder)

    def load(self, compute: Compute, folder: Path) -> None:
        """Restore what ``save`` wrote."""
        load_whole(compute, folder)

    def scatter(self, items: list[Any]) -> list[Any]:
        """Return all items."""
        return items

    def gather(self, items: list[Any]) -> list[Any]:
        """Return all items."""
        return items

    def sum_totals(self, totals: Totals) -> Totals:
        """Return the counts unchanged."""
        return totals

    def sum_results(self, terms: dict[str, float], averages: Averages) -> tuple[dict[str, float], Averages]:
        """Return the results unchanged."""
        return terms, averages

    def sum_number(self, value: float) -> float:
        """Return the number unchanged."""
        return value

    def everyone(self, item: Any) -> list[Any]:
        """Return the only rank's item."""
        return [item]

    def barrier(self) -> None:
        """No-op."""

"""One process, one device."""

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
    """Nothing to share, nothing to sum."""

    name = "single"
    rank = data_rank = 0
    world = data_size = 1
    shards_forward = handles_autocast = False

    def __init__(self, *sections: object) -> None:
        """Sections of the settings change nothing here: every strategy is made with them."""

    def prepare(self, model: TokenModel) -> None:
        """The only copy is the right one."""

    def optimizer(self, model: TokenModel, settings: OptimSettings) -> Optimizer:
        """The plain one."""
        return build_optimizer(model, settings)

    def clear(self, optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
        """Gradients that keep their memory (see ``engine.gradients``)."""
        reserve_moments(optimizer)
        clear_gradients(parameters)

    def synchronised_passes(self, count: int) -> int:
        """As many as there is work for."""
        return count

    def backward(self, loss: Tensor, last: bool) -> None:
        """Autograd's."""
        loss.backward()

    def update(self, optimizer: Optimizer, parameters: list[nn.Parameter], limit: float, finite: bool) -> float:
        """Clip and step."""
        close_gradients(parameters)
        norm = norm_of([p.grad for p in parameters if p.grad is not None])
        return clip_and_step(optimizer, parameters, norm, limit, finite)

    def gathered(self, *models: TokenModel) -> AbstractContextManager[None]:
        """They always are."""
        return nullcontext()

    def weights(self, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """As they are."""
        for name, parameter in module.named_parameters():
            yield name, parameter.detach()

    def save(self, compute: Compute, folder: Path) -> None:
        """Whole files."""
        save_whole(compute, folder)

    def load(self, compute: Compute, folder: Path) -> None:
        """Undo ``save``."""
        load_whole(compute, folder)

    def scatter(self, items: list[Any]) -> list[Any]:
        """Everything."""
        return items

    def gather(self, items: list[Any]) -> list[Any]:
        """Everything."""
        return items

    def sum_totals(self, totals: Totals) -> Totals:
        """As they are."""
        return totals

    def sum_results(self, terms: dict[str, float], averages: Averages) -> tuple[dict[str, float], Averages]:
        """As they are."""
        return terms, averages

    def sum_number(self, value: float) -> float:
        """As it is."""
        return value

    def everyone(self, item: Any) -> list[Any]:
        """Return the only rank's item."""
        return [item]

    def barrier(self) -> None:
        """Nobody to wait for."""

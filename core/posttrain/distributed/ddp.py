"""Data-parallel strategy: every process has the whole model and a part of the examples; gradients are summed per step.

No wrapper is needed: the loss shares already have global denominators, so the step's gradient is the plain sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from posttrain.distributed.ranks import Ranks
from posttrain.distributed.replicated import clip_and_step, load_whole, norm_of, save_whole
from posttrain.network.kernels.cpu.gradient_buffers import clear_gradients, close_gradients
from posttrain.training.optim import build_optimizer, reserve_moments

if TYPE_CHECKING:
    from posttrain.network.token_model import TokenModel
    from posttrain.settings import OptimSettings
    from posttrain.training.run import Compute

#: Numbers per bucket of gradients.
BUCKET = 25_000_000


class DistributedData(Ranks):
    """Same weights on every rank: they start as rank 0's and get the same updates."""

    name = "ddp"
    shards_forward = handles_autocast = False

    def prepare(self, model: TokenModel) -> None:
        """Broadcast rank 0's weights and buffers."""
        for tensor in [*model.parameters(), *model.buffers()]:
            dist.broadcast(tensor.data, 0)

    def optimizer(self, model: TokenModel, settings: OptimSettings) -> Optimizer:
        """Build the plain optimiser, on every rank."""
        return build_optimizer(model, settings)

    def clear(self, optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
        """Zero the gradients, keeping their memory (see ``gradient_buffers``)."""
        reserve_moments(optimizer)
        clear_gradients(parameters)

    def synchronised_passes(self, count: int) -> int:
        """Return ``count``: ranks only meet after their last pass."""
        return count

    def backward(self, loss: Tensor, last: bool) -> None:
        """Call ``loss.backward()``."""
        loss.backward()

    def update(self, optimizer: Optimizer, parameters: list[nn.Parameter], limit: float, finite: bool) -> float:
        """Sum, clip and step, alike on every rank."""
        close_gradients(parameters)
        _sum_gradients(parameters)
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


def _sum_gradients(parameters: list[nn.Parameter]) -> None:
    """Sum gradients in flat buckets: a small model costs one message; a rank without examples adds zeros (D1)."""
    for bucket in _buckets(parameters):
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in bucket])
        dist.all_reduce(flat)
        start = 0
        for p in bucket:
            p.grad = flat[start : start + p.numel()].view_as(p).clone()
            start += p.numel()


def _buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    size = BUCKET + 1
    for parameter in parameters:
        if size + parameter.numel() > BUCKET or buckets[-1][0].dtype != parameter.dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.numel()
    return buckets

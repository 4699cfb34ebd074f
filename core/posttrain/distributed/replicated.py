"""Common code of strategies with whole weights on every rank: the update, and checkpoints written by rank 0."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from posttrain.distributed.sharded import FOLDER, load_sharded
from posttrain.models.save import restore_weights, save_model

if TYPE_CHECKING:
    from posttrain.training.run import Compute

#: Optimiser state and the modules beside the model.
FILE = "optimizer.pt"


def norm_of(gradients: list[Tensor]) -> float:
    """Return the root of the sum of squares, accumulated in float32 or better."""
    total = 0.0
    for gradient in gradients:
        total += float(
            gradient.double().pow(2).sum() if gradient.dtype.itemsize == 8 else gradient.float().pow(2).sum()
        )
    return total**0.5


def clip_and_step(
    optimizer: Optimizer, parameters: list[nn.Parameter], norm: float, limit: float, finite: bool
) -> float:
    """Clip summed gradients of norm ``norm`` to ``limit`` and step, unless norm or loss is not finite."""
    if limit and math.isfinite(norm) and norm > limit:
        scale = limit / (norm + 1e-6)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
    if finite and math.isfinite(norm):
        optimizer.step()
    return norm


def save_whole(compute: Compute, folder: Path) -> None:
    """Write, on rank 0, the model as transformers reads it, and the rest beside it."""
    save_model(compute.policy, compute.tokenizer, folder / "model", compute.strategy)
    if compute.strategy.rank == 0:
        rest = {"optimizer": compute.optimizer.state_dict(), "extra": compute.policy.extra.state_dict()}
        torch.save(rest, folder / FILE)


def load_whole(compute: Compute, folder: Path) -> None:
    """Read the whole checkpoint on every rank; also one written by ranks with sharded weights."""
    if (folder / FOLDER).is_dir():
        load_sharded(compute, folder)
        return
    restore_weights(compute.policy, folder / "model")
    rest = torch.load(folder / FILE, map_location="cpu", weights_only=True)
    compute.optimizer.load_state_dict(rest["optimizer"])
    compute.policy.extra.load_state_dict(rest["extra"])

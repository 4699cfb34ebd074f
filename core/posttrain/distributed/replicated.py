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


#: Numbers whose squares are summed as one row: far more in float32 would lose digits, as a whole gradient would.
ROW = 256


def norm_of(gradients: list[Tensor]) -> float:
    """Return the root of the sum of squares, accumulated in float32 or better."""
    return sum(float(square_of(gradient)) for gradient in gradients) ** 0.5


def square_of(gradient: Tensor) -> Tensor:
    """Return the sum of a gradient's squares, in one pass over it without a copy."""
    wide = torch.float64 if gradient.dtype.itemsize == 8 else torch.float32
    flat = gradient.flatten()  # (n,)
    cut = len(flat) // ROW * ROW
    rows = torch.linalg.vector_norm(flat[:cut].view(-1, ROW), dim=1, dtype=wide)  # (n / ROW,)
    return rows.square().sum() + torch.linalg.vector_norm(flat[cut:], dtype=wide).square()


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

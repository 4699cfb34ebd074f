"""Checkpoints in torch's distributed format: every rank writes its part, and any number of ranks reads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.optim import Optimizer

from posttrain.errors import CheckpointError

if TYPE_CHECKING:
    from posttrain.training.run import Compute

FOLDER = "distributed"


def save_sharded(compute: Compute, folder: Path) -> None:
    """Write trained weights, modules beside the model, and optimiser state, all by parameter name."""
    trained = _trained(compute)
    state: dict[str, Any] = {"weights": trained, "optimizer": _moments(trained, compute.optimizer)}
    dcp.save(state, checkpoint_id=str(folder / FOLDER), no_dist=not dist.is_initialized())


def load_sharded(compute: Compute, folder: Path) -> None:
    """Read a checkpoint in place. Raises CheckpointError for another model's."""
    place = folder / FOLDER
    if not place.is_dir():
        raise CheckpointError(
            f"'{folder}' was written by ranks with whole weights. Resume with --strategy single or --strategy ddp."
        )
    reader = dcp.FileSystemReader(str(place))
    known = set(reader.read_metadata().state_dict_metadata)
    trained = _trained(compute)
    missing = [name for name in trained if f"weights.{name}" not in known]
    unknown = [key for key in known if key.startswith("weights.") and key.removeprefix("weights.") not in trained]
    if missing or unknown:
        raise CheckpointError(
            f"'{place}' does not fit the model: {len(missing)} weights are missing, {len(unknown)} unknown, first "
            f"{(missing + unknown)[0]}."
        )
    _fill(compute.optimizer)
    moments = _moments(trained, compute.optimizer)
    for name in [name for name in moments if not any(key.startswith(f"optimizer.{name}.") for key in known)]:
        del moments[name]  # a parameter without any gradient so far
        compute.optimizer.state.pop(trained[name])
    state: dict[str, Any] = {"weights": trained, "optimizer": moments}
    dcp.load(state, checkpoint_id=str(place), no_dist=not dist.is_initialized())
    for name, values in state["optimizer"].items():
        compute.optimizer.state[trained[name]] = values


def _trained(compute: Compute) -> dict[str, nn.Parameter]:
    return {name: p for name, p in compute.policy.named_parameters() if p.requires_grad}


def _moments(trained: dict[str, nn.Parameter], optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    return {name: optimizer.state[p] for name, p in trained.items() if p in optimizer.state}


@torch.no_grad()
def _fill(optimizer: Optimizer) -> None:
    """Make an optimiser allocate its state by a step of size zero; loading then overwrites it."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = _nothing(group["lr"])
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
        for parameter in group["params"]:
            parameter.grad = None


def _nothing(rate: float | Tensor) -> float | Tensor:
    return rate * 0

"""Strategies that work on this machine, and what the others lack."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass

import torch

from posttrain.distributed.select import STRATEGIES

#: Strategy -> its package beyond the core's own, and the extra that installs it.
PACKAGES = {"qlora": ("bitsandbytes", "qlora"), "deepspeed": ("deepspeed", "deepspeed")}


@dataclass(frozen=True)
class Finding:
    """A strategy, whether it works here with so many processes, and why, or why not and what helps."""

    strategy: str
    works: bool
    why: str


def findings(processes: int) -> list[Finding]:
    """Check each strategy, for ``processes`` on this machine if it distributes the work."""
    return [Finding(name, *_look(name, processes)) for name in STRATEGIES]


def _look(name: str, processes: int) -> tuple[bool, str]:
    if name in PACKAGES:
        package, extra = PACKAGES[name]
        if importlib.util.find_spec(package) is None:
            return False, f"the package {package} is not installed. Install it with: pip install 'posttrain[{extra}]'"
    gpus = torch.cuda.device_count()
    if name == "single":
        return True, _device()
    if name == "qlora":
        return True, f"bitsandbytes {importlib.metadata.version('bitsandbytes')} on {_device()}"
    if not torch.distributed.is_available():
        return False, "this build of torch has no torch.distributed. Install torch from its own package index"
    if gpus and processes > gpus:
        return (
            False,
            f"{processes} processes need a GPU each, {gpus} here. Use --nproc {gpus}, or more machines: --nnodes",
        )
    where = f"{processes} GPUs, NCCL" if gpus else f"{processes} processes on the CPU, gloo"
    if name == "fsdp" and importlib.util.find_spec("torch.distributed.fsdp._fully_shard") is None:
        return False, f"torch {torch.__version__} has no fully_shard. Upgrade with: pip install -U 'torch>=2.6'"
    if name == "deepspeed":
        return True, f"deepspeed {importlib.metadata.version('deepspeed')}, {where}"
    return True, where


def _device() -> str:
    if torch.cuda.is_available():
        return f"one GPU, {torch.cuda.get_device_name(0)}"
    return "Apple's GPU" if torch.backends.mps.is_available() else "the CPU"

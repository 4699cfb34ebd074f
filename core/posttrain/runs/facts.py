"""What a run writes down about itself: versions, hardware, code."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from typing import Any

import torch

PACKAGES = ("posttrain", "torch", "transformers", "accelerate", "peft", "datasets", "bitsandbytes", "deepspeed", "vllm")


def versions() -> dict[str, str]:
    """Python's version and those of the packages that shape the numbers."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    """Look the packages up, once for a process: it takes longer than a tiny run's step."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores, memory in GiB, accelerators."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory, 1),
        "gpus": gpus,
    }


def code() -> dict[str, Any] | None:
    """Commit of the working folder and whether it has changes; None outside a git repository."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=5)
        dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(dirty.stdout.strip())}


def peak_memory_mb() -> float:
    """Most memory this process has had at one time: of the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def memory_now_mb(device: torch.device) -> float:
    """Memory that this process has now: of the GPU where ``device`` is one, else resident."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    import psutil

    return float(psutil.Process().memory_info().rss) / 2**20


def memory_limit_mb(device: torch.device) -> float:
    """All the memory that there is: of the GPU where ``device`` is one, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**20
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20

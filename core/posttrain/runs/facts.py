"""Facts that a run records about itself: versions, hardware, code."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("posttrain", "torch", "transformers", "accelerate", "peft", "datasets", "bitsandbytes", "deepspeed", "vllm")


def versions() -> dict[str, str]:
    """Return Python's version and those of the packages that affect the numbers."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    """Read the packages' versions, once a process: it takes longer than a tiny run's step."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Return processor, cores, memory in GiB, accelerators."""
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
    """Return the commit of the working folder and whether it has changes; None outside a git repository."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=5)
        dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(dirty.stdout.strip())}


def peak_memory_mb() -> float:
    """Return the peak memory of this process in MiB: of the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # Linux's ru_maxrss of a process never lies below the memory of the program that started it
        high = next((line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        if high is not None:
            return int(high) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def memory_now_mb(device: torch.device) -> float:
    """Return the present memory of this process in MiB: of the GPU where ``device`` is one, else resident."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    import psutil

    return float(psutil.Process().memory_info().rss) / 2**20


def memory_limit_mb(device: torch.device) -> float:
    """Return the total memory in MiB: of the GPU where ``device`` is one, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**20
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20

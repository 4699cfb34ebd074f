"""Choice between torch's two libraries for float32 matrix products on a CPU."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

#: Weights of a model from which it pays: oneDNN generates a kernel for each new shape.
LARGE = 10_000_000
CPU_FACTS = Path("/proc/cpuinfo")


def prefer_onednn(model: nn.Module) -> bool:
    """Use oneDNN for the matrices of ``model`` where it is faster than MKL and as exact; return whether it is used.

    On AMD's processors it was: 1.05 to 1.3 times as fast for a training step's shapes, up to 1.9 times for the few rows
    of generation. Torch has no switch for it. It gives oneDNN the float32 products that may be rounded to bfloat16, and
    oneDNN rounds none of them on a processor without bfloat16 matrix units, which is tested first. Attention is
    excluded, see ``attend``.
    """
    large = sum(p.numel() for p in model.parameters()) >= LARGE
    elsewhere = any(p.device.type != "cpu" for p in model.parameters())
    if not large or elsewhere or torch.cuda.is_available() or not slow_mkl():
        return False
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    if not _exact():
        torch.set_float32_matmul_precision(before)
        return False
    return True


def attend(query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """Compute torch's ``scaled_dot_product_attention`` with MKL's products, in the backward pass too.

    On a CPU it multiplies a few dozen rows at a time; oneDNN needs longer to look up the kernel than to run it: 1.5 to
    2.6 times the time in training and four times in generation were measured.
    """
    chosen = torch.get_float32_matmul_precision()
    with full_precision_matmul(query):
        mixed = scaled_dot_product_attention(query, key, value, *arguments, **options)
    if mixed.grad_fn is not None and _through_onednn(query, chosen):
        mixed.grad_fn.register_prehook(lambda _: torch.set_float32_matmul_precision("highest"))
        mixed.grad_fn.register_hook(lambda *_: torch.set_float32_matmul_precision(chosen))
    return mixed


@contextmanager
def full_precision_matmul(states: Tensor) -> Iterator[None]:
    """Undo ``prefer_onednn`` inside the block, where ``states`` are on a CPU."""
    chosen = torch.get_float32_matmul_precision()
    if not _through_onednn(states, chosen):
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(chosen)


def _through_onednn(states: Tensor, chosen: str) -> bool:
    return states.device.type == "cpu" and chosen != "highest"


def emulates_bfloat16(states: Tensor) -> bool:
    """Return whether attention over ``states`` would be computed in bfloat16 on a CPU without units for it.

    There the fused kernel's result depends on the number of queries, so one new token of a sampler and the whole row of
    a trainer differ by some thousandths of a nat; in float32 they agree.
    """
    return not has_bfloat16_kernels() and is_bfloat16_on_cpu(states)


def is_bfloat16_on_cpu(states: Tensor) -> bool:
    """Return whether ``states`` are multiplied in bfloat16 on a CPU, by their type or under autocast."""
    if states.device.type != "cpu":
        return False
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return autocast or states.dtype == torch.bfloat16


@functools.cache
def has_bfloat16_kernels() -> bool:
    """Return whether oneDNN multiplies bfloat16 matrices on this processor."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def slow_mkl() -> bool:
    """Return whether oneDNN was faster than MKL on this kind of processor."""
    return torch.backends.mkldnn.is_available() and CPU_FACTS.is_file() and "AuthenticAMD" in CPU_FACTS.read_text()


def bfloat16_gain(size: int = 512, products: int = 5) -> float:
    """Measure the speed of bfloat16 matrix products relative to float32 on this CPU: the best of a few of each."""
    seconds = []
    for kind in (torch.float32, torch.bfloat16):
        matrix = torch.ones(size, size, dtype=kind)
        taken = []
        for _ in range(products):
            begun = time.perf_counter()
            with torch.autocast("cpu", enabled=False):  # else both are bfloat16 within a pass
                matrix @ matrix
            taken.append(time.perf_counter() - begun)
        seconds.append(min(taken))
    return seconds[0] / seconds[1]


def _exact() -> bool:
    """Return whether products keep more bits than bfloat16 has."""
    value = torch.full((64, 64), 1 + 2**-12)
    return bool(torch.equal(value @ torch.ones(64, 64), 64 * value))

"""Linear layers with weights in oneDNN's own order while a model samples on a CPU.

A decoding step multiplies a handful of rows by every weight. In the order in which the multiplication reads them, the
weights stream at nearly memory speed: two thirds of the time of torch's own order were measured on an AMD processor,
for up to hundreds of rows. Under autocast the copies are in bfloat16, half as large. They are freed when sampling ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from posttrain.network.kernels.cpu.bf16_backward import is_narrow
from posttrain.network.kernels.cpu.matmul import LARGE, has_bfloat16_kernels, slow_mkl

#: Share of the free memory that the copies may take.
MEMORY_SHARE = 1 / 4
_TYPES = (torch.float32, torch.bfloat16)


class _Packed:
    """Forward pass of one layer; the copy is made at the first call and after each change of the weight."""

    def __init__(self, layer: nn.Linear):
        self.layer = layer
        self.made_of: tuple[torch.dtype, int, int] | None = None
        self.weight: Tensor | None = None

    def __call__(self, states: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        autocast = torch.is_autocast_enabled("cpu")
        kind = torch.get_autocast_dtype("cpu") if autocast else weight.dtype
        able = kind == torch.float32 or (kind == torch.bfloat16 and has_bfloat16_kernels())
        if torch.is_grad_enabled() or not able or not (autocast or states.dtype == kind):
            return linear(states, weight, bias)
        made_of = kind, weight._version, weight.data_ptr()
        if made_of != self.made_of:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(kind), None)
            self.made_of = made_of
        added = None if bias is None else bias.to(kind)
        return torch.ops.mkldnn._linear_pointwise(states.to(kind), self.weight, added, "none", [], "")


@contextmanager
def prepacked_weights(model: nn.Module) -> Iterator[None]:
    """Prepack the linear layers of ``model`` inside the block, where it pays and the memory suffices."""
    layers: list[Any] = [module for module in model.modules() if _fits(module)]
    if not pays(sum(layer.weight.nbytes for layer in layers)):
        yield
        return
    before = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.__dict__["forward"] = _Packed(layer)
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            del layer.__dict__["forward"]
            if own is not None:
                layer.forward = own


def _fits(module: Any) -> bool:
    if type(module) is not nn.Linear or ("forward" in module.__dict__ and not is_narrow(module)):
        return False
    weight = module.weight
    return type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.dtype in _TYPES


def pays(size: float) -> bool:
    """Return whether this machine gains by copies of ``size`` bytes and has the memory for them."""
    if not 4 * LARGE <= size <= psutil.virtual_memory().available * MEMORY_SHARE:
        return False
    return slow_mkl() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

"""Linear layers whose weights lie in oneDNN's own order while a model samples on a CPU.

A step of decoding multiplies a handful of rows by every weight there is. Laid out as the multiplication reads them, the
weights pass by at nearly the speed of the memory: two thirds of the time of torch's own layout were measured on an AMD
processor, for any number of rows up to hundreds. The copies go when sampling ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from posttrain.models.products import LARGE, slow_mkl

#: Share of the free memory that the copies may take.
MEMORY_SHARE = 1 / 4


class _Packed:
    """The forward pass of one layer; the copy is made at the first call and after each change of the weight."""

    def __init__(self, layer: nn.Linear):
        self.layer = layer
        self.state: tuple[int, int] | None = None
        self.weight: Tensor | None = None

    def __call__(self, states: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        if states.dtype != torch.float32 or torch.is_autocast_enabled("cpu") or torch.is_grad_enabled():
            return linear(states, weight, bias)
        state = weight._version, weight.data_ptr()
        if state != self.state:
            self.weight, self.state = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None), state
        return torch.ops.mkldnn._linear_pointwise(states, self.weight, bias, "none", [], "")


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Let the linear layers of ``model`` multiply that way meanwhile, where it pays and there is memory for it."""
    layers: list[Any] = [module for module in model.modules() if _fits(module)]
    if not pays(sum(layer.weight.nbytes for layer in layers)):
        yield
        return
    for layer in layers:
        layer.__dict__["forward"] = _Packed(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


def _fits(module: Any) -> bool:
    if type(module) is not nn.Linear or "forward" in module.__dict__:
        return False
    weight = module.weight
    return type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.dtype == torch.float32


def pays(size: float) -> bool:
    """Whether this machine gains by copies of ``size`` bytes and has the memory for them."""
    if not 4 * LARGE <= size <= psutil.virtual_memory().available * MEMORY_SHARE:
        return False
    return slow_mkl() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

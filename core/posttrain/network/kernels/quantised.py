"""Kernels of bitsandbytes layers that give a row the same numbers in training, in evaluation and among others."""

from typing import Any

from torch import nn


def settle_kernels(module: nn.Module) -> None:
    """Make the quantised layers of ``module`` use one kernel in training and in evaluation, where there are two."""
    for layer in module.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            # One pass in evaluation mode would repack the weights for a kernel without gradient.
            setattr(layer, "support_avx512bf16_for_cpu", False)  # noqa: B010  (of bitsandbytes alone)
        if _is_int8(layer) and next(layer.parameters()).device.type == "cpu":
            layer.__class__ = _in_training(type(layer))
            layer.train()


def has_int8(module: nn.Module) -> bool:
    """Return whether ``module`` has int8 products off the CPU, which choose outliers by all rows of a pass at once."""
    return any(_is_int8(layer) and next(layer.parameters()).device.type != "cpu" for layer in module.modules())


def _is_int8(layer: nn.Module) -> bool:
    return type(layer).__module__.startswith("bitsandbytes") and isinstance(getattr(layer, "weight", None), _int8())


def _int8() -> type:
    import bitsandbytes

    kind: type = bitsandbytes.nn.Int8Params
    return kind


def _in_training(kind: type) -> Any:
    """Return a subclass of ``kind`` that is never in evaluation mode.

    On a CPU that mode uses another kernel: it rounds inputs to 8 bits and separates the columns in which any token of
    the pass is large, so that a token's numbers depend on later ones, and on other rows.
    """

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        return nn.Module.train(self, True)

    return type(kind.__name__, (kind,), {"train": train, "__module__": kind.__module__})

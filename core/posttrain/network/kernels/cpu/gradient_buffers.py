"""Gradients that keep their memory from step to step.

On a CPU, gradients allocated anew among the activations pin the memory that these give back, and the C library asks
the system for more: nearly a third of a run's memory, and with the pages' first use much of its time, were measured.
So they are zeroed in place, and the two backward passes whose gradients are as large as the vocabulary, those of the
embedding and of the head, add to them directly. A GPU's allocator has no such trouble, and lends the memory to
generation in between.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

#: Set on a parameter while ``open_gradient`` may be added to: the gradient's version at the start of the step.
_MARK = "_posttrain_open_since"


def clear_gradients(parameters: list[nn.Parameter]) -> None:
    """Begin a step: no gradient, or one of zeros that ``open_gradient`` gives until ``close_gradients``."""
    for parameter in parameters:
        if parameter.device.type != "cpu":
            parameter.grad = None
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        else:
            parameter.grad.zero_()
        setattr(parameter, _MARK, parameter.grad._version)


def close_gradients(parameters: list[nn.Parameter]) -> None:
    """End the step's backward passes. A parameter that none has reached has no gradient: optimisers pass over it."""
    for parameter in parameters:
        since = parameter.__dict__.pop(_MARK, None)
        if since is not None and parameter.grad is not None and parameter.grad._version == since:
            parameter.grad = None


def open_gradient(parameter: Any) -> Tensor | None:
    """Where a backward pass may add the gradient of ``parameter`` itself; None where autograd has to be given it."""
    return parameter.grad if _MARK in parameter.__dict__ else None

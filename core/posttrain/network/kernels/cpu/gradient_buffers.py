"""Gradients that keep their memory from step to step.

On a CPU, gradients allocated anew among the activations pin the memory that these free, and the C library asks the
system for more: nearly a third of a run's memory, and with the pages' first use much of its time, were measured. So
they are zeroed in place, and the two backward passes whose gradients are as large as the vocabulary, those of the
embedding and of the head, add to them directly. A GPU's allocator has no such problem, and its memory serves generation
in between.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

#: Set on a parameter while ``open_gradient`` may be added to: the gradient's version at the start of the step.
_MARK = "_posttrain_open_since"


def clear_gradients(parameters: list[nn.Parameter]) -> None:
    """Clear gradients for a step: None, or zeros that ``open_gradient`` returns until ``close_gradients``."""
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
    """End the step's backward passes. A parameter that none reached gets no gradient, and optimisers skip it."""
    for parameter in parameters:
        since = parameter.__dict__.pop(_MARK, None)
        if since is not None and parameter.grad is not None and parameter.grad._version == since:
            parameter.grad = None


def open_gradient(parameter: Any) -> Tensor | None:
    """Return the gradient that a backward pass may add to in place; None where autograd must get it."""
    return parameter.grad if _MARK in parameter.__dict__ else None

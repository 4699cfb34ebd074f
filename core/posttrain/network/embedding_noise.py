"""NEFTune (arXiv:2310.05914): uniform noise on the embedded tokens of a training pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.errors import ModelError


@contextmanager
def noised(embedding: nn.Module, alpha: float, lengths: Tensor) -> Iterator[None]:
    """Add noise of at most ``alpha / sqrt(L * d)`` to embedded tokens of width d inside the block, as transformers.

    ``lengths``: L, the tokens of the row that a token belongs to, in a shape that broadcasts to the embedded ids.
    Raises ModelError where the model never calls ``embedding``.
    """
    called = False

    def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        nonlocal called
        called = True
        size = alpha / (lengths.to(output.device) * output.size(-1)).sqrt()[..., None]
        return output + torch.zeros_like(output).uniform_(-1, 1) * size.to(output.dtype)

    hook = embedding.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()
    if not called:
        raise ModelError(
            f"neftune-alpha is {alpha:g}, but the model does not call its embedding ({type(embedding).__name__}), so "
            "its tokens get no noise. Leave neftune-alpha out."
        )

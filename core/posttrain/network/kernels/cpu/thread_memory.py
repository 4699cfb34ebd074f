"""Memory that a thread takes once and uses again: fresh pages of a large tensor take longer than filling it."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor


class _Blocks(threading.local):
    """Bytes by name, of the largest size that was asked for."""

    def __init__(self) -> None:
        self.bytes: dict[str, Tensor] = {}


_blocks = _Blocks()
#: Least bytes to ask for. From 32 MB on the C library maps a block by itself; among the activations it would pin what
#: they free. Pages that nobody writes to take no memory.
LEAST = 2**26


def reused(name: str, shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
    """Return the thread's uninitialised tensor ``name``, which the next call with this name overwrites."""
    size = math.prod(shape) * kind.itemsize
    if name not in _blocks.bytes or _blocks.bytes[name].numel() < size:
        with torch.inference_mode(False):  # memory that inference took serves training too
            _blocks.bytes[name] = torch.empty(max(size, LEAST), dtype=torch.uint8)
    return _blocks.bytes[name][:size].view(kind).view(shape)


def reused_copy(name: str, states: Tensor, kind: torch.dtype) -> Tensor:
    """Copy ``states`` as ``kind`` into the thread's tensor ``name``."""
    return reused(name, tuple(states.shape), kind).copy_(states)


def taken(name: str, shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
    """Return an uninitialised tensor that stays the caller's until ``give_back``: a second one is other memory."""
    found = reused(name, shape, kind)
    del _blocks.bytes[name]
    return found


def give_back(name: str, states: Tensor) -> None:
    """Let the thread's next tensor ``name`` have the memory of ``states``, which nobody reads any more."""
    with torch.inference_mode(False):
        block = torch.empty(0, dtype=torch.uint8).set_(states.untyped_storage())  # type: ignore[call-overload]
    if name not in _blocks.bytes or _blocks.bytes[name].numel() < block.numel():
        _blocks.bytes[name] = block

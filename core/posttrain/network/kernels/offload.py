"""Activations in main memory between the forward and the backward pass, for GPUs that cannot hold them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

#: Smaller tensors stay: moving them costs more than it frees.
SMALLEST_BYTES = 2**18


def offloaded() -> AbstractContextManager[Any]:
    """Move tensors that autograd saves inside the block to pinned memory, and back when they are needed.

    Weights stay where they are. Copies are ordered by the GPU's stream, so only the kernel that needs them waits.
    """
    return torch.autograd.graph.saved_tensors_hooks(_to_host, _to_device)


def _to_host(kept: Tensor) -> Tensor | tuple[torch.device, Tensor]:
    if kept.device.type != "cuda" or kept.nbytes < SMALLEST_BYTES or _is_weight(kept):
        return kept
    place = torch.empty(kept.shape, dtype=kept.dtype, pin_memory=True)
    return kept.device, place.copy_(kept, non_blocking=True)


def _to_device(found: Tensor | tuple[torch.device, Tensor]) -> Tensor:
    if isinstance(found, Tensor):
        return found
    device, place = found
    return place.to(device, non_blocking=True)


def _is_weight(kept: Tensor) -> bool:
    """Return whether a tensor is a trained leaf, or a view of one such as a transposed weight."""
    owner: Any = kept if kept._base is None else kept._base
    return owner.is_leaf and (owner.requires_grad or isinstance(owner, torch.nn.Parameter))

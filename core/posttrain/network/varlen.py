"""Attention over the segments of a packed row in one kernel call, on GPUs: torch's own variable-length flash attention.

The plain path of ``attention`` calls a kernel once for every shape of segment. Here one call takes all of them: queries
are concatenated, and the keys of a segment are those that it continues and its own. The kernel's causal mask is aligned
at the end, so each token sees the whole prompt and its own predecessors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from posttrain.network.segments import Sight

#: The kernel supports no other dtypes.
_TYPES = (torch.bfloat16, torch.float16)


@cache
def _kernel() -> Callable[..., Any] | None:
    """Return torch's function, or None in a release without it (before 2.11 it had another signature)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in inspect.signature(varlen_attn).parameters else None


def fits(query: Tensor, dropout: float) -> bool:
    """Return whether the kernel takes ``query``: half precision on an NVIDIA GPU of compute capability 8 or newer."""
    if query.device.type != "cuda" or dropout or torch.version.hip or _type(query) not in _TYPES:
        return False
    return torch.cuda.get_device_capability(query.device)[0] >= 8 and _kernel() is not None


def _type(query: Tensor) -> torch.dtype:
    """Return the dtype of the kernel: rotary positions are float32 under autocast."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype


def by_kernel(query: Tensor, key: Tensor, value: Tensor, sight: Sight, scaling: float | None) -> Tensor:
    """Compute attention of ``(heads, N, d)`` over a ``sight`` with a window, ``(1, N, heads, d)``."""
    kernel, segments = _kernel(), sight.segments
    assert kernel is not None
    assert sight.window is not None
    kind = _type(query)
    query, key, value = (
        states.transpose(0, 1).to(kind).contiguous() for states in (query, key, value)
    )  # (N, heads, d)
    if segments.keys is not None:
        key, value = key.index_select(0, segments.keys), value.index_select(0, segments.keys)  # (sum(seen), heads, d)
    longest = max(segments.lengths), max(segments.seen)
    ends = segments.query_ends, segments.key_ends
    before = sight.window - 1 if sight.window > 0 else -1  # tokens that each sees before itself; -1 for all
    return kernel(query, key, value, *ends, *longest, scale=scaling, window_size=(before, 0))[None]

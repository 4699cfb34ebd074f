"""Numbers of a golden file as tensors: rows of unequal lengths, values spread over tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def as_tensor(values: list[Any]) -> Tensor:
    """Convert numbers to float64; integers and truth values keep their dtype."""
    kind = torch.tensor(values).dtype
    return torch.tensor(values, dtype=torch.float64 if kind.is_floating_point else kind)


def padded(rows: list[list[Any]]) -> tuple[Tensor, Tensor]:
    """Pad rows of unequal length to ``(B, T, ...)`` with zeros; return them and their mask ``(B, T)``."""
    width = max(len(row) for row in rows)
    tensors = [torch.tensor(row, dtype=torch.float64) for row in rows]
    inner = next(tensor.shape[1:] for tensor in tensors if len(tensor))
    values = torch.zeros(len(rows), width, *inner, dtype=torch.float64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, tensor in enumerate(tensors):
        values[index, : len(tensor)] = tensor.reshape(-1, *inner)
        mask[index, : len(tensor)] = True
    return values, mask


def spread_out(column: Any, mask: Tensor | None) -> Tensor:
    """Expand one number a completion ``(B,)`` to each of its tokens ``(B, T)``."""
    return torch.where(mask, column[:, None], 0.0) if mask is not None and column.dim() == 1 else column


def spread_evenly(logps: Tensor, lengths: Any) -> tuple[Tensor, Tensor]:
    """Expand whole-row log-probs ``(B,)`` to rows of equal tokens ``(B, T)`` with that sum, and their mask."""
    if lengths is None:
        lengths = 1
    count = torch.tensor(lengths).reshape(-1).expand(len(logps))  # (B,)
    mask = torch.arange(int(count.max()))[None] < count[:, None]
    return torch.where(mask, (logps / count)[:, None], torch.zeros(1, dtype=logps.dtype)), mask


def two_tokens(logps: Tensor) -> Tensor:
    """Return logits ``(n, 2)`` of a two-token vocabulary with the tokens' log-probs ``(n,)``, without gradient."""
    logps = logps.detach().clamp(max=-1e-12)
    return torch.stack([logps, torch.log(-torch.expm1(logps))], -1)


def depth(value: Any) -> int:
    """Return how deep lists are nested; 0 for no list."""
    levels = 0
    while isinstance(value, list):
        levels, value = levels + 1, value[0] if value else None
    return levels


def numeric(value: Any) -> bool:
    """Whether there are only numbers, and at least one, in lists or not."""
    if isinstance(value, list):
        return bool(value) and all(numeric(one) for one in value)
    return isinstance(value, bool | int | float)

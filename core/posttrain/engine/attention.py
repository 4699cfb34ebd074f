"""Attention that keeps the segments of a packed row apart, without padding and without a quadratic mask.

transformers lets an attention function be registered by name. Ours receives the segments of the row (see ``layout``)
and runs the exact kernel on each with what it continues: nothing leaks between them, and no work is spent on
pairs of tokens that must not meet. Without that argument (generation, padded batches) it is transformers' own sdpa.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from posttrain.engine import varlen
from posttrain.engine.segments import Segments
from posttrain.models.products import attend, emulates_bfloat16, exact_products

NAME = "posttrain_documents"


def document_attention(
    module: torch.nn.Module,
    query: Tensor,  # (1, heads, L, d)
    key: Tensor,  # (1, key-value heads, L, d)
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each segment of a packed row and to what it continues; plain sdpa without segments."""
    if emulates_bfloat16(value):
        with torch.autocast("cpu", enabled=False):
            wide = (states.float() for states in (query, key, value))
            mixed, _ = document_attention(module, *wide, attention_mask, dropout, scaling, segments, **kwargs)
        return mixed.bfloat16(), None
    if segments is None:
        with exact_products(query):
            return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    refused = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    window = kwargs.get("sliding_window")
    if refused or (window is not None and max(segments.seen) > window):
        raise NotSupported(refused or ["sliding_window"])
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    if varlen.fits(query, dropout):
        return varlen.by_kernel(query[0], key[0], value[0], segments, scaling), None  # (1, L, heads, d)
    return _by_segment(query[0], key[0], value[0], segments, dropout, scaling), None  # (1, L, heads, d)


def _by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    dropout: float,
    scaling: float | None,
) -> Tensor:
    """Attention of ``(heads, L, d)`` within each segment and to what it continues, as ``(1, L, heads, d)``.

    Segments of the same shape go through the kernel together: hundreds of short rows cost a handful of calls.
    """
    pieces = []
    for shape in segments.shapes:
        q, k, v = (shape.own.cut(states) for states in (query, key, value))  # (k, heads, length, d)
        if shape.before is not None:
            k = torch.cat([shape.before.cut(key), k], dim=2)  # (k, heads, before + length, d)
            v = torch.cat([shape.before.cut(value), v], dim=2)
        mixed = attend(q, k, v, shape.mask, dropout, is_causal=shape.mask is None, scale=scaling)
        pieces.append(mixed.transpose(1, 2).flatten(0, 1))  # (k * length, heads, d)
    together = torch.cat(pieces)  # (L, heads, d), segments of one shape next to each other
    return (together if segments.order is None else together.index_select(0, segments.order))[None]


class NotSupported(Exception):
    """This model's attention does something that segments cannot be kept apart under."""


def register() -> None:
    """Make the function known to transformers under ``NAME``."""
    AttentionInterface.register(NAME, document_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)

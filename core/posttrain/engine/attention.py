"""Attention that keeps the documents of a packed row apart, without padding and without a quadratic mask.

transformers lets an attention function be registered by name. Ours receives where each document of the row begins and
runs the exact causal kernel on each document alone: nothing leaks between them, and no work is spent on pairs of
tokens that must not meet. Without that argument (generation, padded batches) it is transformers' own sdpa.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "posttrain_documents"


def document_attention(
    module: torch.nn.Module,
    query: Tensor,  # (1, heads, L, d)
    key: Tensor,  # (1, key-value heads, L, d)
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    document_lengths: list[int] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document of a packed row; plain sdpa where no documents are given."""
    if document_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    refused = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    window = kwargs.get("sliding_window")
    if refused or (window is not None and max(document_lengths) > window):
        raise NotSupported(refused or ["sliding_window"])
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    pieces = []
    parts = zip(*(t.split(document_lengths, dim=2) for t in (query, key, value)), strict=True)
    for q, k, v in parts:
        pieces.append(scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling))
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None  # (1, L, heads, d)


class NotSupported(Exception):
    """This model's attention does something that documents cannot be kept apart under."""


def register() -> None:
    """Make the function known to transformers under ``NAME``."""
    AttentionInterface.register(NAME, document_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)

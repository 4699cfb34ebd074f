"""Attention of one new token a row where several query heads share their keys and values.

transformers' sdpa copies all keys and values once for every query head before each step of decoding. The query heads
of one group can as well be several queries of one head: the same sums, and nothing is copied. It is used only while
generating, and only where the model runs on sdpa through transformers' interface for attention functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from posttrain.network.attention import NAME as DOCUMENTS
from posttrain.network.attention import document_attention
from posttrain.network.kernels.cpu.matmul import attend, emulates_bfloat16, full_precision_matmul

NAME = "posttrain_grouped"

#: Arguments by which a model asks for more than a masked softmax.
_EXTRA = ("position_bias", "cache", "softcap", "s_aux")


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,  # (n, heads, t, d)
    key: Tensor,  # (n, key-value heads, T, d)
    value: Tensor,
    attention_mask: Tensor | None,  # (n, 1, t, T)
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """``(n, t, heads, d)``: grouped for one new token a row, as in training for everything else."""
    if emulates_bfloat16(value):
        with torch.autocast("cpu", enabled=False):
            wide = query.float(), key.float(), value.float()
            mixed, _ = grouped_attention(module, *wide, attention_mask, dropout, scaling, **kwargs)
        return mixed.bfloat16(), None
    rows, heads, new, size = query.shape
    by_head = attention_mask is not None and attention_mask.size(1) > 1
    extra = any(kwargs.get(name) is not None for name in _EXTRA)
    if new > 1 or heads == key.size(1) or by_head or extra or dropout:
        return document_attention(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    grouped = query.reshape(rows, key.size(1), heads // key.size(1), size)  # (n, key-value heads, group, d)
    plain = attention_mask is None or attention_mask.dtype == torch.bool
    if query.device.type == "cpu" and query.dtype == torch.float32 and plain:
        mixed = _by_products(grouped, key, value, attention_mask, size**-0.5 if scaling is None else scaling)
    else:
        mixed = attend(grouped, key, value, attention_mask, scale=scaling)
    return mixed.reshape(rows, 1, heads, value.size(-1)), None


def _by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """The same as two batched products: a CPU's fused kernel, made for long queries, takes a third longer."""
    with full_precision_matmul(query):
        scores = torch.bmm((query * scaling).flatten(0, 1), key.flatten(0, 1).transpose(1, 2))  # (n * heads, group, T)
        if mask is not None:
            scores.unflatten(0, query.shape[:2]).masked_fill_(~mask, -torch.inf)
        return torch.bmm(scores.softmax(-1), value.flatten(0, 1)).unflatten(0, query.shape[:2])


@contextmanager
def grouped(model: Any) -> Iterator[None]:
    """Let ``model`` use ``grouped_attention`` meanwhile, if it runs on sdpa."""
    changed: list[tuple[Any, str]] = []
    if getattr(model, "_supports_attention_backend", False):
        AttentionInterface.register(NAME, grouped_attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
        for config in configs.values():
            implementation = getattr(config, "_attn_implementation", None)
            if implementation in ("sdpa", DOCUMENTS):
                changed.append((config, implementation))
    try:
        for config, _ in changed:
            config._attn_implementation = {"": NAME}  # this configuration, not those inside it
        yield
    finally:
        for config, implementation in changed:
            config._attn_implementation = {"": implementation}

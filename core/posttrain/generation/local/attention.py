"""Grouped-query attention of a few new tokens a row, without copies of keys and values.

transformers' sdpa copies all keys and values once for every query head before each step of decoding. The query heads
of one group can instead be several queries of one head: the same sums, without a copy. It is used only while
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
from posttrain.network.kernels.cpu.attention import by_products, by_products_pays
from posttrain.network.kernels.cpu.matmul import attend, emulates_bfloat16, full_precision_matmul

NAME = "posttrain_grouped"

#: Most new tokens a row for which copies of keys and values cost more than what the fused kernel saves.
FEW = 16

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
    """Return ``(n, t, heads, d)``: grouped for a few new tokens a row, as in training for everything else."""
    if emulates_bfloat16(value):
        with torch.autocast("cpu", enabled=False):
            wide = query.float(), key.float(), value.float()
            mixed, _ = grouped_attention(module, *wide, attention_mask, dropout, scaling, **kwargs)
        return mixed.bfloat16(), None
    rows, heads, new, size = query.shape
    by_head = attention_mask is not None and attention_mask.size(1) > 1
    extra = any(kwargs.get(name) is not None for name in _EXTRA)
    few = new == 1 or (new <= FEW and attention_mask is not None)  # without a mask several see each other by place
    if not few or heads == key.size(1) or by_head or extra or dropout:
        return document_attention(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    plain = attention_mask is None or attention_mask.dtype == torch.bool
    if plain and by_products_pays(query, dropout):
        seen = torch.ones(1, key.size(2), dtype=torch.bool) if attention_mask is None else attention_mask
        return by_products(query, key, value, seen, scaling).transpose(1, 2), None
    group = heads // key.size(1)
    grouped = query.reshape(rows, key.size(1), group * new, size)  # (n, key-value heads, group * t, d)
    if attention_mask is not None and new > 1:
        whole = attention_mask.expand(rows, 1, new, key.size(2))[:, :, None]  # (n, 1, 1, t, T)
        attention_mask = whole.expand(rows, 1, group, new, key.size(2)).flatten(2, 3)  # (n, 1, group * t, T)
    if query.device.type == "cpu" and query.dtype == torch.float32 and plain:
        mixed = _by_products(grouped, key, value, attention_mask, size**-0.5 if scaling is None else scaling)
    else:
        mixed = attend(grouped, key, value, attention_mask, scale=scaling)
    return mixed.reshape(rows, heads, new, value.size(-1)).transpose(1, 2), None


def _by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Compute attention as two batched products: a CPU's fused kernel, made for long queries, takes a third longer."""
    with full_precision_matmul(query):
        scores = torch.bmm((query * scaling).flatten(0, 1), key.flatten(0, 1).transpose(1, 2))  # (n * heads, group, T)
        if mask is not None:
            least = torch.finfo(scores.dtype).min  # finite: a padded query may see nothing
            scores.unflatten(0, query.shape[:2]).masked_fill_(~mask, least)
        return torch.bmm(scores.softmax(-1), value.flatten(0, 1)).unflatten(0, query.shape[:2])


@contextmanager
def grouped(model: Any) -> Iterator[None]:
    """Make ``model`` use ``grouped_attention`` inside the context, if it runs on sdpa."""
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

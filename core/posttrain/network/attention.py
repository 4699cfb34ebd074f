"""Attention that separates the segments of a packed row, without padding and without a quadratic mask.

transformers registers attention functions, and the functions that make their masks, by name. While a packed row is
read, ours build no mask but a one-entry tensor that carries each layer's visibility rule (see ``segments.Sight``), and
run the exact kernel on each segment with what it continues: nothing leaks between texts, windows are those of each
text, and no work is spent on pairs of tokens that must not meet. Elsewhere (generation, padded batches) it is
transformers' own sdpa. What torch's kernel lacks, soft-caps of the scores and sinks, is computed from the scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from posttrain.network import varlen
from posttrain.network.kernels.cpu.attention import by_products, by_products_pays
from posttrain.network.kernels.cpu.matmul import attend, emulates_bfloat16, full_precision_matmul
from posttrain.network.segments import Segments, Sight

NAME = "posttrain_documents"

_row: ContextVar[Segments | None] = ContextVar("row", default=None)
"""Packed row of the current pass."""


@contextmanager
def reading(segments: Segments | None) -> Iterator[None]:
    """Make masks inside the block those of a packed row; with None the usual ones."""
    before = _row.set(segments)
    try:
        yield
    finally:
        _row.reset(before)


def document_mask(**arguments: Any) -> Tensor | None:
    """Return transformers' sdpa mask; for a packed row a tensor of one entry that carries its ``Sight``."""
    segments = _row.get()
    if segments is None:
        return sdpa_mask(**arguments)
    if arguments.get("use_vmap"):
        raise NotSupported("a mask of the model's own")
    token = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=segments.device)
    token.sight = Sight(segments, arguments["mask_function"], arguments.get("local_size"))  # type: ignore[attr-defined]
    return token


def document_attention(
    module: torch.nn.Module,
    query: Tensor,  # (R, heads, L, d); R is 1 for a packed row
    key: Tensor,  # (R, key-value heads, L, d)
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention ``(R, L, heads, d)``: causal within each text of a packed row, by the mask elsewhere."""
    sight = getattr(attention_mask, "sight", None)  # also where a layer is computed again, when the row is not read
    if sight is None or sight.segments.context is None:
        return _attention(module, query, key, value, attention_mask, dropout, scaling, softcap, s_aux, **kwargs), None

    def attend(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None) -> Tensor:
        return _attention(module, query, key, value, attention_mask, dropout, scaling, softcap, sinks, **kwargs)

    return sight.segments.context.by_heads(attend, [query, key, value], s_aux), None


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    s_aux: Tensor | None,
    **kwargs: Any,
) -> Tensor:
    if emulates_bfloat16(value):
        with torch.autocast("cpu", enabled=False):
            wide = query.float(), key.float(), value.float()
            mixed = _attention(module, *wide, attention_mask, dropout, scaling, softcap, s_aux, **kwargs)
        return mixed.bfloat16()
    sight = getattr(attention_mask, "sight", None)
    by_scores = softcap is not None or s_aux is not None
    if sight is None and _row.get() is not None:
        raise NotSupported("a mask of the model's own")
    if sight is None and not by_scores:
        if kwargs.get("position_bias") is None and by_products_fits(
            module, query, key, attention_mask, dropout, kwargs
        ):
            return by_products(query, key, value, attention_mask, scaling).transpose(1, 2)
        with full_precision_matmul(query):
            return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)[0]
    if kwargs.get("position_bias") is not None:
        raise NotSupported("position_bias")
    groups = query.shape[1] // key.shape[1]
    if sight is not None and not by_scores and by_products_pays(query, dropout):
        return _by_segment(query[0], key[0], value[0], sight, dropout, scaling, products=True)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    if sight is None:
        causal = kwargs.get("is_causal")
        if attention_mask is None and query.shape[2] > 1 and getattr(module, "is_causal", True) and causal is not False:
            attention_mask = _causal(query, key)
        mixed = _from_scores(query, key, value, attention_mask, dropout, scaling, softcap, s_aux)
        return mixed.transpose(1, 2)
    if not by_scores and sight.window is not None and varlen.fits(query, dropout):
        return varlen.by_kernel(query[0], key[0], value[0], sight, scaling)  # (1, L, heads, d)
    extra: dict[str, Any] = {"softcap": softcap, "sinks": s_aux} if by_scores else {}
    return _by_segment(query[0], key[0], value[0], sight, dropout, scaling, **extra)  # (1, L, heads, d)


def by_products_fits(
    module: torch.nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, dropout: float, more: dict[str, Any]
) -> bool:
    """Return whether attention outside of packed rows, a sampler's or a padded batch's, goes through the products.

    Sampler and trainer would differ by bfloat16's rounding otherwise, some thousandths of a nat.
    """
    if not by_products_pays(query, dropout):
        return False
    if mask is not None:
        return mask.dtype == torch.bool and mask.shape[1:] == (1, query.shape[2], key.shape[2])
    causal = getattr(module, "is_causal", True) and more.get("is_causal") is not False
    return causal and query.shape[2] == key.shape[2]


def _by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sight: Sight,
    dropout: float,
    scaling: float | None,
    products: bool = False,
    **extra: Any,
) -> Tensor:
    """Compute attention of ``(heads, L, d)`` in each segment and to what it continues, as ``(1, L, heads, d)``.

    Segments of the same shape share a kernel call: hundreds of short rows cost a handful of calls.
    """
    pieces = []
    for shape, mask in zip(sight.segments.shapes, sight.masks, strict=True):
        q, k, v = (shape.own.cut(states) for states in (query, key, value))  # (k, heads, length, d)
        if shape.before is not None:
            k = torch.cat([shape.before.cut(key), k], dim=2)  # (k, heads, before + length, d)
            v = torch.cat([shape.before.cut(value), v], dim=2)
        if products:
            mixed = by_products(q, k, v, mask, scaling)
        elif extra:
            mixed = _from_scores(q, k, v, _causal(q, k) if mask is None else mask, dropout, scaling, **extra)
        else:
            mixed = attend(q, k, v, mask, dropout, is_causal=mask is None, scale=scaling)
        pieces.append(mixed.transpose(1, 2).flatten(0, 1))  # (k * length, heads, d)
    together = torch.cat(pieces)  # (L, heads, d), segments of one shape next to each other
    order = sight.segments.order
    return (together if order is None else together.index_select(0, order))[None]


def _causal(query: Tensor, key: Tensor) -> Tensor:
    """Return a mask ``(t, T)`` in which the last query sees the last key."""
    new, seen = query.shape[2], key.shape[2]
    return torch.ones(new, seen, dtype=torch.bool, device=query.device).tril(seen - new)


def _from_scores(
    query: Tensor,  # (k, heads, t, d)
    key: Tensor,  # (k, heads, T, d)
    value: Tensor,
    mask: Tensor | None,  # bool, or numbers to add; broadcasts to (k, heads, t, T)
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,  # (heads,)
) -> Tensor:
    """Compute attention ``(k, heads, t, d)`` from scores, with ``softcap`` (Gemma 2) and per-head sinks (gpt-oss)."""
    with full_precision_matmul(query):
        scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)  # (k, h, t, T)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        elif mask is not None:
            scores = scores + mask
        if sinks is not None:
            scores = torch.cat([scores, sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1).to(scores)], -1)
        wide = scores if scores.dtype == torch.float64 else scores.float()
        shares = wide.softmax(-1)[..., : key.shape[2]].to(value.dtype)
        return drop(shares, dropout) @ value


class NotSupported(Exception):
    """An attention feature that segments do not support."""


def register() -> None:
    """Register the functions with transformers under ``NAME``, unless they are: ``compiled`` has its own."""
    if NAME not in AttentionInterface():
        AttentionInterface.register(NAME, document_attention)
    AttentionMaskInterface.register(NAME, document_mask)

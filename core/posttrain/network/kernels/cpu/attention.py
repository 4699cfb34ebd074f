"""Attention in bfloat16 on a CPU by batched matrix products, in both passes.

Torch's fused kernel multiplies a few dozen rows at a time and is no faster in bfloat16 than in float32: a quarter of a
training step of short texts. Where the processor multiplies bfloat16 matrices faster, the products of a few hundred
queries with all of their keys take half of its time and less. Scores and their gradients are float32, as in the fused
kernel; factors are rounded to bfloat16. Query heads that share a key head are multiplied together, without repeating
it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posttrain.network.kernels.cpu.matmul import bfloat16_gain, has_bfloat16_kernels, is_bfloat16_on_cpu
from posttrain.network.kernels.cpu.thread_memory import reused, reused_copy

NARROW = torch.bfloat16
#: Gain of bfloat16 products from which these ways are the faster: 3.6 and 4.2 are common, below 1 where it is emulated.
PAYS = 1.5
#: Queries whose scores are in memory at a time, of all heads of a row.
BLOCK = 256


def by_products_pays(query: Tensor, dropout: float) -> bool:
    """Return whether attention of ``query`` is computed in bfloat16 on a CPU, and these products are faster."""
    return not dropout and is_bfloat16_on_cpu(query) and _gains()


@functools.cache
def _gains() -> bool:
    return has_bfloat16_kernels() and bfloat16_gain() >= PAYS


def by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Compute attention ``(n, heads, t, d)`` in bfloat16 of queries ``(n, heads, t, d)`` to ``(n, key heads, T, d)``.

    ``mask``: ``(t, T)`` or ``(n, 1, t, T)``, True where a query sees a key; None for causal attention with t = T.
    """
    return _Attention.apply(query, key, value, mask, query.shape[-1] ** -0.5 if scale is None else scale)


class _Attention(torch.autograd.Function):
    """Keeps query, key and value; scores are computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        with _narrow_factors():
            q, k, v = (states.to(NARROW) for states in (query, key, value))
            ctx.save_for_backward(q, k, v, mask)
            ctx.scale, ctx.types = scale, (query.dtype, key.dtype, value.dtype)
            mixed = torch.empty(q.shape[:3] + v.shape[-1:], dtype=NARROW)  # (n, heads, t, d)
            for block in _blocks(q, k, v, mask, scale):
                found = torch.bmm(reused_copy("narrow", block.shares(), NARROW), block.v)
                block.rows(mixed).copy_(found.view_as(block.rows(mixed)))
        return mixed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask = ctx.saved_tensors
        with _narrow_factors():
            gradient = gradient.to(NARROW)
            to_q = torch.empty_like(q)
            to_k, to_v = (torch.zeros(states.shape, dtype=torch.float32) for states in (k, v))
            for block in _blocks(q, k, v, mask, ctx.scale):
                own, shares = block.flat(gradient), block.shares()  # (N, R, d), (N, R, seen)
                to_values = torch.bmm(reused_copy("narrow", shares, NARROW).transpose(1, 2), own)
                to_shares = _bmm("scores", own, block.v)
                to_scores = reused("changes", shares.shape, torch.float32)
                torch._softmax_backward_data(to_shares, shares, -1, torch.float32, grad_input=to_scores)
                narrow = reused_copy("narrow", to_scores.mul_(ctx.scale), NARROW)
                block.rows(to_q).copy_(torch.bmm(narrow, block.k).view_as(block.rows(to_q)))
                for sums, part in ((to_v, to_values), (to_k, torch.bmm(narrow.transpose(1, 2), block.q))):
                    block.keys(sums).add_(part.view_as(block.keys(sums)))
        found = zip((to_q, to_k, to_v), ctx.types, strict=True)
        return (*(states.to(kind) for states, kind in found), None, None)


@dataclass
class _Block:
    """Some rows of all queries, and the keys that they may see; N = n * key heads, R = queries of a key head."""

    q: Tensor  # (N, R, d)
    k: Tensor  # (N, seen, d)
    v: Tensor
    start: int
    end: int
    hidden: Tensor
    """Numbers to add to the scores of the last keys, ``(rows, keys)`` or ``(n, 1, rows, keys)``."""
    scale: float

    def rows(self, states: Tensor) -> Tensor:
        """Return the block's part of ``(n, heads, t, d)``."""
        return states[:, :, self.start : self.end]

    def flat(self, states: Tensor) -> Tensor:
        """Return the block's part, the heads of a key head in one matrix: ``(N, R, d)``."""
        return self.rows(states).reshape(self.q.shape[0], -1, states.shape[-1])

    def keys(self, states: Tensor) -> Tensor:
        """Return the part ``(n, key heads, seen, d)`` of keys or values that the block may see."""
        return states[:, :, : self.k.shape[1]]

    def shares(self) -> Tensor:
        """Compute the softmax of the block's scores, ``(N, R, seen)`` float32."""
        scores = _bmm("scores", self.q, self.k).mul_(self.scale)
        rows = self.hidden.shape[0] if self.hidden.dim() == 4 else 1
        each = scores.view(rows, -1, self.end - self.start, self.k.shape[1])  # (n or 1, heads, rows, seen)
        last = each[..., -self.hidden.shape[-1] :]
        last.add_(self.hidden)  # in place: a view
        return torch.softmax(scores, -1, out=reused("shares", scores.shape, torch.float32))


def _blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Iterator[_Block]:
    length, heads = q.shape[2], k.shape[0] * k.shape[1]
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        seen = end if mask is None else k.shape[2]
        hidden = _later(end - start) if mask is None else _as_numbers(mask[..., start:end, :])
        own = q[:, :, start:end].reshape(heads, -1, q.shape[-1])
        keys, values = (states[:, :, :seen].reshape(heads, seen, -1) for states in (k, v))
        yield _Block(own, keys, values, start, end, hidden, scale)


@functools.lru_cache(8)
def _later(rows: int) -> Tensor:
    return torch.full((rows, rows), -torch.inf).triu(1)


def _as_numbers(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill_(~mask, torch.finfo(torch.float32).min)


def _bmm(name: str, left: Tensor, right: Tensor) -> Tensor:
    """Multiply ``(N, R, d)`` and ``(N, T, d)``, both bfloat16, to float32 ``(N, R, T)``."""
    wide = [reused_copy(side, states, torch.float32) for side, states in (("left", left), ("right", right))]
    found = reused(name, (*left.shape[:2], right.shape[1]), torch.float32)
    return torch.bmm(wide[0], wide[1].transpose(1, 2), out=found)


@contextmanager
def _narrow_factors() -> Iterator[None]:
    """Round the factors of float32 products to bfloat16: that of two bfloat16 matrices is then as fast, and exact."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

"""Choosing the next tokens from logits, with the random numbers handed in."""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.contract.generation import Sampling

#: Rows that are chosen for together on a CPU: what is larger than the processor's own memory takes three times as long.
CPU_ROWS = 8


def choose(logits: Tensor, sampling: Sampling, uniforms: list[float]) -> tuple[Tensor, Tensor]:
    """Choose one token per row of ``logits`` ``(n, V)``: ``(tokens (n,) int64, logps (n,) float32)``.

    ``uniforms`` holds a number in [0, 1) per row. The log-probs belong to the full distribution, so that they can be
    compared with the trainer's; ``top_p`` and ``top_k`` only restrict what is chosen.
    """
    rows = CPU_ROWS if logits.device.type == "cpu" else max(len(uniforms), 1)
    pieces = [
        _choose(piece, sampling, uniforms[begin : begin + rows])
        for begin, piece in zip(range(0, len(uniforms), rows), logits.split(rows), strict=True)
    ]
    return torch.cat([tokens for tokens, _ in pieces]), torch.cat([logps for _, logps in pieces])


def _choose(logits: Tensor, sampling: Sampling, uniforms: list[float]) -> tuple[Tensor, Tensor]:
    logits = logits.float()
    logps = torch.log_softmax(logits / sampling.logp_temperature, dim=-1)  # (n, V)
    if sampling.greedy:
        tokens = logits.argmax(dim=-1)  # (n,)
    else:
        tokens = _invert(restrict(logps, sampling.top_k, sampling.top_p), uniforms)
    return tokens, logps.gather(-1, tokens[:, None])[:, 0]


def restrict(logps: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set the log-probs ``(n, V)`` of tokens outside top-k, then outside top-p of what remains, to minus infinity."""
    if 0 < top_k < logps.size(-1):
        kth = logps.topk(top_k, dim=-1).values[:, -1:]  # (n, 1)
        logps = logps.masked_fill(logps < kth, float("-inf"))
    if top_p < 1:
        ascending, order = logps.sort(dim=-1)
        removed = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p  # (n, V), in sorted order
        removed[:, -1] = False
        logps = logps.masked_fill(removed.scatter(-1, order, removed), float("-inf"))
    return logps


def _invert(logps: Tensor, uniforms: list[float]) -> Tensor:
    """Invert the cumulative distribution of ``logps`` ``(n, V)`` (need not be normalised) at ``uniforms``: ``(n,)``."""
    # Sums over a large vocabulary lose the rare tokens in float32; MPS has nothing better.
    dtype = torch.float32 if logps.device.type == "mps" else torch.float64
    cumulative = logps.softmax(dim=-1, dtype=dtype).cumsum(dim=-1)  # (n, V)
    total = cumulative[:, -1:].contiguous()  # (n, 1)
    target = torch.tensor(uniforms, dtype=dtype, device=logps.device)[:, None] * total  # (n, 1)
    # right=True never lands on a token of probability 0. In float32 a number just below 1 becomes 1: past the end.
    tokens = torch.searchsorted(cumulative, target, right=True)
    last = torch.searchsorted(cumulative, total)
    return torch.minimum(tokens, last)[:, 0].clamp(max=logps.size(-1) - 1)  # past the end where the logits are nan

"""Sampling of the next tokens from logits, with given random numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from posttrain.contract.generation import Sampling

#: Rows per call on a CPU: tensors larger than the processor's cache take three times as long.
CPU_ROWS = 8


def choose(logits: Tensor, sampling: Sampling, uniforms: list[float]) -> tuple[Tensor, Tensor]:
    """Choose one token per row of ``logits`` ``(n, V)``: ``(tokens (n,) int64, logps (n,) float32)``.

    ``uniforms`` has a number in [0, 1) per row. The log-probs belong to the full distribution, so that they can be
    compared with the trainer's; ``top_p`` and ``top_k`` restrict only the choice.
    """
    return _by_rows(lambda rows: _choose(logits[rows], sampling, uniforms[rows]), logits)


def propose(logits: Tensor, sampling: Sampling, uniforms: list[float]) -> tuple[Tensor, Tensor]:
    """Choose like ``choose``; return the tokens ``(n,)`` and the probabilities ``(n, V)`` of all tokens."""

    def some(rows: slice) -> tuple[Tensor, Tensor]:
        chances = _chances(logits[rows].float() / sampling.logp_temperature, sampling)
        return _invert(chances, uniforms[rows]), chances

    return _by_rows(some, logits)


def accept(
    logits: Tensor, sampling: Sampling, proposed: Tensor, chances: Tensor, uniforms: list[tuple[float, float]]
) -> tuple[Tensor, Tensor]:
    """Choose like ``choose``, with as many of the tokens ``proposed`` ``(n,)`` as the distribution allows.

    A token that was drawn with probability q stays with probability min(1, p / q), where p is the one to sample from;
    in place of one that does not stay, a token comes from the positive part of p - q. Together that is p (Leviathan et
    al. 2023, arXiv:2211.17192, appendix A.1). ``chances`` ``(n, V)`` are the q, ``uniforms`` two numbers a row.
    """

    def some(rows: slice) -> tuple[Tensor, Tensor]:
        return _accept(logits[rows], sampling, proposed[rows], chances[rows], uniforms[rows])

    return _by_rows(some, logits)


def _accept(
    logits: Tensor, sampling: Sampling, proposed: Tensor, chances: Tensor, uniforms: list[tuple[float, float]]
) -> tuple[Tensor, Tensor]:
    logps = torch.log_softmax(logits.float() / sampling.logp_temperature, dim=-1)  # (n, V)
    wanted = _chances(logps, sampling)  # (n, V)
    p, q = (one.gather(-1, proposed[:, None])[:, 0] for one in (wanted, chances))  # (n,)
    stays = p > q * torch.tensor([first for first, _ in uniforms], dtype=p.dtype, device=p.device)
    others = _invert((wanted - chances).clamp(min=0), [second for _, second in uniforms])
    tokens = torch.where(stays, proposed, others)
    return tokens, logps.gather(-1, tokens[:, None])[:, 0]


def _by_rows(choose: Callable[[slice], tuple[Tensor, Tensor]], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Call ``choose`` with a few rows of ``logits`` ``(n, V)`` at a time; join what it returns."""
    step = CPU_ROWS if logits.device.type == "cpu" else max(logits.size(0), 1)
    pieces = [choose(slice(begin, begin + step)) for begin in range(0, logits.size(0), step)]
    return torch.cat([first for first, _ in pieces]), torch.cat([second for _, second in pieces])


def _choose(logits: Tensor, sampling: Sampling, uniforms: list[float]) -> tuple[Tensor, Tensor]:
    logits = logits.float()
    logps = torch.log_softmax(logits / sampling.logp_temperature, dim=-1)  # (n, V)
    if sampling.greedy:
        tokens = logits.argmax(dim=-1)  # (n,)
    else:
        tokens = _invert(_chances(logps, sampling), uniforms)
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


def _chances(logps: Tensor, sampling: Sampling) -> Tensor:
    """Return the probabilities ``(n, V)`` that tokens are chosen with; ``logps`` need not be normalised."""
    # Sums over a large vocabulary lose rare tokens in float32; MPS has no float64.
    dtype = torch.float32 if logps.device.type == "mps" else torch.float64
    return restrict(logps, sampling.top_k, sampling.top_p).softmax(dim=-1, dtype=dtype)


def _invert(chances: Tensor, uniforms: list[float]) -> Tensor:
    """Invert the cumulative distribution of ``chances`` ``(n, V)`` (need not sum to 1) at ``uniforms``: ``(n,)``."""
    cumulative = chances.cumsum(dim=-1)  # (n, V)
    total = cumulative[:, -1:].contiguous()  # (n, 1)
    target = torch.tensor(uniforms, dtype=chances.dtype, device=chances.device)[:, None] * total  # (n, 1)
    # right=True never selects a token of probability 0. In float32 a number just below 1 becomes 1: past the end.
    tokens = torch.searchsorted(cumulative, target, right=True)
    last = torch.searchsorted(cumulative, total)
    return torch.minimum(tokens, last)[:, 0].clamp(max=chances.size(-1) - 1)  # past the end where the logits are nan

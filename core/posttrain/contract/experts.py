"""Experts that a sampler chose for each token, as completions and sequences carry them.

A choice is a tensor ``(n, layers, choices)`` of expert numbers, in the order in which the router gave them.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Entry of a token whose experts are not known.
UNKNOWN = -1


def narrowed(experts: Tensor) -> Tensor:
    """Return expert numbers in the narrowest type that holds them, on the CPU: int8 below 128 experts, else int16."""
    wide = experts.numel() and int(experts.max()) > torch.iinfo(torch.int8).max
    return experts.to("cpu", torch.int16 if wide else torch.int8)


def joined(parts: list[Tensor]) -> Tensor:
    """Concatenate choices of consecutive tokens, in the wider of their types."""
    kind = torch.int16 if any(part.dtype == torch.int16 for part in parts) else torch.int8
    return torch.cat([part.to(kind) for part in parts])


def unknown(count: int, like: Tensor) -> Tensor:
    """Return the entries ``(count, layers, choices)`` of tokens whose experts are not known."""
    return like.new_full((count, *like.shape[1:]), UNKNOWN)


def expert_marks(experts: Tensor) -> Tensor:
    """Return a number ``(n,)`` int64 of each token's choices; different choices have different ones.

    It is a sum of products with fixed random factors modulo 2^64: two choices meet with a chance of about 2^-63.
    """
    flat = experts.flatten(1).long() + 2  # (n, layers * choices)
    generator = torch.Generator().manual_seed(20251011)
    low, high = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
    factors = torch.randint(low, high, (flat.shape[1],), generator=generator)
    return (flat * factors).sum(1)

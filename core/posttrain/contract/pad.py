"""Padding of per-token values, and the order in which a batch's sequences run."""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.contract.views import Example, Sequence

#: A row for passes that are made only because other ranks make one.
DUMMY_SEQUENCE = Sequence(torch.zeros(2, dtype=torch.int64), torch.tensor([False, True]))


def roles_of(examples: list[Example]) -> list[str]:
    """Roles in the order of the first example; every example of a batch has the same ones."""
    return list(examples[0].sequences)


def sequences_of(examples: list[Example]) -> list[Sequence]:
    """All sequences, role by role, in the order that ``build_views`` takes them apart again."""
    return [s for role in roles_of(examples) for e in examples for s in e.sequences[role]]


def texts_of(sequences: list[Sequence]) -> list[Sequence]:
    """The texts of which ``sequences`` are made, in order: their trained tokens are the same, in the same order."""
    return [text for sequence in sequences for text in sequence.texts]


def token_mask(counts: list[int]) -> Tensor:
    """``(R, T)`` bool: True for the first ``counts[i]`` places of row i; T is at least 1."""
    longest = max([1, *counts])
    return torch.arange(longest) < torch.tensor(counts)[:, None]


def pad_tokens(flat: Tensor, mask: Tensor) -> Tensor:
    """Lay flat per-token values ``(n,)`` out as ``(R, T)``, zero where ``mask`` is False; gradients flow."""
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)

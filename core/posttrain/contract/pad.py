"""Padding of per-token values, and the order of a batch's sequences."""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.contract.views import Example, Sequence

#: Row of the passes that a rank runs only because other ranks run one.
DUMMY_SEQUENCE = Sequence(torch.zeros(2, dtype=torch.int64), torch.tensor([False, True]))


def roles_of(examples: list[Example]) -> list[str]:
    """Return the roles in the order of the first example; all examples of a batch have the same ones."""
    return list(examples[0].sequences)


def sequences_of(examples: list[Example]) -> list[Sequence]:
    """Return all sequences, role by role, in the order that ``build_views`` splits them by."""
    return [s for role in roles_of(examples) for e in examples for s in e.sequences[role]]


def texts_of(sequences: list[Sequence]) -> list[Sequence]:
    """Return the texts of ``sequences``, in order; their trained tokens are the same, in the same order."""
    return [text for sequence in sequences for text in sequence.texts]


def token_mask(counts: list[int]) -> Tensor:
    """Return a mask ``(R, T)`` bool: True for the first ``counts[i]`` entries of row i; T is at least 1."""
    longest = max([1, *counts])
    return torch.arange(longest) < torch.tensor(counts)[:, None]


def pad_tokens(flat: Tensor, mask: Tensor) -> Tensor:
    """Pad flat per-token values ``(n,)`` to ``(R, T)``, zero where ``mask`` is False; gradients flow."""
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)

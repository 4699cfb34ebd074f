"""Micro-batches as methods see them: views of per-token log-probabilities, never logits.

Views are compact: column t of a row is its t-th *trained* token, so prompts, tool results and padding inside a
conversation are left out, and ``mask`` only marks where shorter rows end.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from posttrain.contract import deprecations
from posttrain.contract.experts import expert_marks
from posttrain.contract.images import Image


@dataclass(frozen=True)
class PerToken:
    """A quantity per token, averaged by the core over the unmasked tokens of the whole optimiser step.

    ``values`` and ``mask`` are ``(B, T)``. Use a view's own mask, or a per-token column of the batch: their counts
    are known before the first backward pass. A mask computed from the policy keeps the view's count.
    """

    values: Tensor
    mask: Tensor


class View:
    """Log-probabilities of the trained tokens of one role, ``(B, T)``, zero where ``mask`` is False.

    ``turn`` ``(B, T)`` numbers, from 0, the contiguous stretches of trained tokens: the model's turns.
    """

    def __init__(self, logps: Tensor, mask: Tensor, score: Tensor | None = None, **statistics: Tensor):
        self.logps = logps  # (B, T)
        self.mask = mask  # (B, T) bool
        if score is not None:
            self.score = score  # (B,)
        self.__dict__.update(statistics)

    @property
    def present(self) -> Tensor:
        """Mask ``(B, K)`` bool of the entries of ``listed`` that are answers of a ranked row."""
        counts = self.counts
        return torch.arange(int(counts.max()), device=counts.device) < counts[:, None]

    def listed(self, values: Tensor) -> Tensor:
        """Arrange values ``(R,)`` of answers in one row per prompt, ``(B, K)``; 0 where ``present`` is False."""
        present = self.present  # (B, K)
        return torch.zeros(present.shape, dtype=values.dtype, device=values.device).masked_scatter(present, values)

    @property
    def lengths(self) -> Tensor:
        """Number of trained tokens of each row, ``(B,)``, in the dtype of the log-probs."""
        return self.mask.sum(-1).to(self.logps.dtype)

    @property
    def sum(self) -> Tensor:
        """Log-probability of each whole row, ``(B,)``."""
        return self.sum_of(self.logps)

    @property
    def mean(self) -> Tensor:
        """Mean log-probability per token of each row, ``(B,)``; 0 for a row without trained tokens."""
        return self.mean_of(self.logps)

    def sum_of(self, values: Tensor) -> Tensor:
        """Sum per-token ``values`` ``(B, T)`` over each row's trained tokens, ``(B,)``."""
        return torch.where(self.mask, values, torch.zeros_like(values)).sum(-1)

    def mean_of(self, values: Tensor) -> Tensor:
        """Average per-token ``values`` ``(B, T)`` over each row's trained tokens, ``(B,)``; 0 for an empty row."""
        return self.sum_of(values) / self.lengths.clamp(min=1)

    def __getattr__(self, name: str) -> Any:
        if name == "turn":  # of each token, (B, T) int64; held where any row has more than one
            return torch.zeros_like(self.mask, dtype=torch.long)
        if name in ("total", "average"):
            deprecations.warn(f"View.{name}")
            return self.sum_of if name == "total" else self.mean_of
        raise AttributeError(
            f"this view has no '{name}'. It has: {', '.join(sorted(self.__dict__))}, lengths, sum, mean. "
            "A token statistic comes from posttrain_token_statistics, a score from needs = ['reward-head']."
        )


class Views(SimpleNamespace):
    """One view per role: ``policy.completion``, or ``policy.chosen`` and ``policy.rejected``."""


class Batch:
    """The columns of a micro-batch: numbers as tensors ``(B,)``, per-token columns ``(B, T)``, the rest as lists."""

    def __init__(self, size: int, columns: dict[str, Any]):
        self.size = size  # B
        self.columns = columns

    def get(self, name: str, default: Any = None) -> Any:
        """Return the column, or ``default`` where the data do not have it."""
        return self.columns.get(name, default)

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def __getattr__(self, name: str) -> Any:
        if name in ("columns", "size") or name.startswith("__"):
            raise AttributeError(name)
        try:
            return self.columns[name]
        except KeyError:
            raise AttributeError(
                f"the batch has no column '{name}'. It has: {', '.join(sorted(self.columns))}"
            ) from None


@dataclass(frozen=True)
class Step:
    """Position of the run: optimiser step ``number`` of ``total`` (from 0), and whether gradients are computed."""

    number: int
    total: int
    training: bool = True


@dataclass
class Sequence:
    """One tokenised row of one role.

    ``ids`` ``(n,)`` are all its tokens; ``trained`` ``(n,)`` marks those in the loss (never the first: nothing predicts
    it). ``per_token`` holds tensors ``(t,)`` aligned with the trained tokens, in order. ``teacher`` is the teacher's
    sequence of the same text, where it differs: another prompt, or another tokeniser.
    """

    ids: Tensor
    trained: Tensor
    per_token: dict[str, Tensor] = field(default_factory=dict)
    teacher: Sequence | None = None
    alignment: Any = None
    """Alignment of the trained tokens with the teacher's (``posttrain.distillation.align.Alignment``), where the
    tokenisers differ."""
    breaks: tuple[int, ...] = ()
    """Indices at which a separate text begins, which sees nothing before it: turns of an episode whose earlier turns
    the chat template rewrites, or the model reads in both directions."""
    images: tuple[Image, ...] = ()
    """Images behind its placeholders, in order."""
    experts: Tensor | None = None
    """Experts that the sampler chose, ``(n, layers, choices)`` int8 or int16, -1 for tokens that it never read; None
    where none are replayed."""

    @property
    def texts(self) -> list[Sequence]:
        """The separate texts that the model reads; only this sequence where it has no breaks."""
        if not self.breaks:
            return [self]
        ends = [*self.breaks, len(self)]
        return [self.part(begin, end) for begin, end in zip([0, *self.breaks], ends, strict=True)]

    def part(self, begin: int, end: int) -> Sequence:
        """Return the tokens from ``begin`` to ``end`` as a sequence of their own, with the images that begin there."""
        counts = torch.tensor([0, *(image.tokens for image in self.images[:-1])]).cumsum(0)
        firsts = self.image_places[counts].tolist() if self.images else []
        images = tuple(
            replace(image, start=max(0, image.start - begin))
            for image, first in zip(self.images, firsts, strict=True)
            if begin <= first < end
        )
        experts = None if self.experts is None else self.experts[begin:end]
        return Sequence(self.ids[begin:end], self.trained[begin:end], images=images, experts=experts)

    @property
    def turn(self) -> Tensor:
        """Number of stretches of trained tokens before that of each trained token, ``(t,)``."""
        at = self.trained.nonzero()[:, 0]
        return (at.diff(prepend=at[:1]) > 1).long().cumsum(0)

    @property
    def count(self) -> int:
        """Number of trained tokens."""
        return int(self.trained.sum())

    @property
    def image_places(self) -> Tensor:
        """Indices ``(m,)`` of the placeholders, image by image."""
        if not self.images:
            return torch.zeros(0, dtype=torch.long)
        places = (self.ids == self.images[0].token).nonzero()[:, 0]
        found, end = [], 0
        for image in self.images:
            begin = max(end, int(torch.searchsorted(places, image.start)))
            end = begin + image.tokens
            found.append(places[begin:end])
        return torch.cat(found)

    @property
    def image_mask(self) -> Tensor:
        """Mask ``(n,)`` bool of the placeholders."""
        return torch.zeros(len(self), dtype=torch.bool).index_fill(0, self.image_places, True)

    @property
    def content(self) -> Tensor:
        """``ids`` with numbers of each image in place of its placeholders, and of replayed experts, ``(n,)`` int64.

        Whatever compares sequences (shared prompts, caches) compares this: ids are the same behind any image, and for
        any experts.
        """
        found = self.ids
        if self.images:
            found = found.index_put((self.image_places,), torch.cat([image.marks for image in self.images]))
        return found if self.experts is None else found + expert_marks(self.experts)

    def __len__(self) -> int:
        return int(self.ids.numel())


@dataclass
class Example:
    """The unit that the loss counts: a row, a pair, a rollout. ``sequences`` by role, ``columns`` from the data."""

    sequences: dict[str, list[Sequence]]
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Number of tokens of all sequences, the cost of a forward pass."""
        return sum(len(s) for rows in self.sequences.values() for s in rows)

    @property
    def trained_tokens(self) -> int:
        """Number of tokens in the loss."""
        return sum(s.count for rows in self.sequences.values() for s in rows)

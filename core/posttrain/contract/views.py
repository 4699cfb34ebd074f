"""What a method sees of a micro-batch: views of per-token log-probabilities, never logits.

Views are compact: column t of a row is its t-th *trained* token, so prompts, tool results and padding inside a
conversation take no place, and ``mask`` only marks where shorter rows end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

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

    ``turn`` ``(B, T)`` counts, from 0, the stretches of trained tokens that others stand between: turns of the model.
    """

    def __init__(self, logps: Tensor, mask: Tensor, score: Tensor | None = None, **statistics: Tensor):
        self.logps = logps  # (B, T)
        self.mask = mask  # (B, T) bool
        if score is not None:
            self.score = score  # (B,)
        self.__dict__.update(statistics)

    @property
    def present(self) -> Tensor:
        """Which places of ``listed`` are answers of a ranked row, ``(B, K)`` bool."""
        counts = self.counts
        return torch.arange(int(counts.max()), device=counts.device) < counts[:, None]

    def listed(self, values: Tensor) -> Tensor:
        """Values of the answers of ranked rows ``(R,)``, one row a prompt ``(B, K)``; 0 where ``present`` is False."""
        present = self.present  # (B, K)
        return torch.zeros(present.shape, dtype=values.dtype, device=values.device).masked_scatter(present, values)

    @property
    def lengths(self) -> Tensor:
        """Trained tokens of each row, ``(B,)``, in the dtype of the log-probs."""
        return self.mask.sum(-1).to(self.logps.dtype)

    @property
    def sum(self) -> Tensor:
        """Log-probability of each whole row, ``(B,)``."""
        return self.total(self.logps)

    @property
    def mean(self) -> Tensor:
        """Mean log-probability per token of each row, ``(B,)``; 0 for a row without trained tokens."""
        return self.average(self.logps)

    def total(self, values: Tensor) -> Tensor:
        """Sum of per-token ``values`` ``(B, T)`` over each row's trained tokens, ``(B,)``."""
        return torch.where(self.mask, values, torch.zeros_like(values)).sum(-1)

    def average(self, values: Tensor) -> Tensor:
        """Mean of per-token ``values`` ``(B, T)`` over each row's trained tokens, ``(B,)``; 0 for an empty row."""
        return self.total(values) / self.lengths.clamp(min=1)

    def __getattr__(self, name: str) -> Any:
        if name == "turn":  # of each token, (B, T) int64; held where any row has more than one
            return torch.zeros_like(self.mask, dtype=torch.long)
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
        """The column, or ``default`` where the data does not have it."""
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
    """Where the run is: optimiser step ``number`` of ``total`` (from 0), and whether gradients are taken."""

    number: int
    total: int
    training: bool = True


@dataclass
class Sequence:
    """One tokenised row of one role.

    ``ids`` ``(n,)`` are all its tokens; ``trained`` ``(n,)`` marks those the loss sees (never the first: nothing
    predicts it). ``per_token`` holds tensors ``(t,)`` aligned with the trained tokens, in order. ``teacher`` is the
    same text as the teacher sees it, where that is another sequence: behind another prompt, or in its own tokens.
    """

    ids: Tensor
    trained: Tensor
    per_token: dict[str, Tensor] = field(default_factory=dict)
    teacher: Sequence | None = None
    alignment: Any = None
    """Which of the trained tokens stand for which of the teacher's (``posttrain.distillation.align.Alignment``), where
    the teacher has another tokeniser."""
    breaks: tuple[int, ...] = ()
    """Where texts of their own begin, which see nothing of what stands before: turns of an episode whose earlier turns
    the chat template rewrites."""
    images: tuple[Image, ...] = ()
    """The pictures behind its placeholders, in order; all of them stand before the first token that was sampled."""

    @property
    def texts(self) -> list[Sequence]:
        """What the model reads, text by text; this sequence alone where it has no breaks."""
        if not self.breaks:
            return [self]
        ends = [*self.breaks, len(self)]
        return [
            Sequence(self.ids[begin:end], self.trained[begin:end])
            for begin, end in zip([0, *self.breaks], ends, strict=True)
        ]

    @property
    def turn(self) -> Tensor:
        """For each trained token ``(t,)`` how many stretches of them lie before its own."""
        at = self.trained.nonzero()[:, 0]
        return (at.diff(prepend=at[:1]) > 1).long().cumsum(0)

    @property
    def count(self) -> int:
        """Number of trained tokens."""
        return int(self.trained.sum())

    @property
    def image_places(self) -> Tensor:
        """Places ``(m,)`` of the placeholders, those of one picture after those of the one before."""
        if not self.images:
            return torch.zeros(0, dtype=torch.long)
        return (self.ids == self.images[0].token).nonzero()[: sum(image.tokens for image in self.images), 0]

    @property
    def image_mask(self) -> Tensor:
        """Which tokens are placeholders, ``(n,)`` bool."""
        return torch.zeros(len(self), dtype=torch.bool).index_fill(0, self.image_places, True)

    @property
    def content(self) -> Tensor:
        """What the model reads, ``(n,)`` int64: ``ids``, with numbers of each picture alone for its placeholders.

        Whatever tells sequences apart (shared prompts, caches) compares this: ids are alike behind any picture.
        """
        if not self.images:
            return self.ids
        return self.ids.index_put((self.image_places,), torch.cat([image.marks for image in self.images]))

    def __len__(self) -> int:
        return int(self.ids.numel())


@dataclass
class Example:
    """What the loss counts as one: a row, a pair, a rollout. ``sequences`` by role, ``columns`` from the data."""

    sequences: dict[str, list[Sequence]]
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """All tokens of all sequences: what a forward pass costs."""
        return sum(len(s) for rows in self.sequences.values() for s in rows)

    @property
    def trained_tokens(self) -> int:
        """Tokens that the loss sees."""
        return sum(s.count for rows in self.sequences.values() for s in rows)

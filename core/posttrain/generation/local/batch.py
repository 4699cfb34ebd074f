"""The completions that grow by a token at each step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posttrain.generation.local.cache import SlotCache
from posttrain.generation.local.prefill import Network, Prefill
from posttrain.generation.local.prefixes import Prefix, prefix_of
from posttrain.generation.local.sample import Sample

#: Where rows cannot be exchanged, the share that must be done before the cache is copied without them.
COMPACT_SHARE = 1 / 8


class Batch:
    """Samples that have been read up to their newest token, and the keys and values of what was read.

    With a cache that rows can join, samples come and go. With any other (layers that carry a state, positions that
    follow from the columns) they start together, and others only when all of them are done.
    """

    def __init__(self, network: Network):
        """An empty batch."""
        self.network = network
        self.samples: list[Sample] = []
        self.width = 0
        """Columns of the cache, padding included."""
        self._cache: Any = None

    @property
    def open(self) -> bool:
        """Whether samples may join now."""
        return not self.samples or isinstance(self._cache, SlotCache)

    def join(self, stem: Prefill, rows: list[int], samples: list[Sample], capacity: int) -> None:
        """Take in samples whose texts, but for the newest token, are ``rows`` of ``stem``.

        ``capacity`` is the number of samples that may come to be in the batch. A stem that cannot be shared is used up.
        """
        if not samples:
            return
        self._take(stem, rows, max(sample.length - 1 for sample in samples), capacity)
        self.samples += samples

    def _take(self, stem: Prefill, rows: list[int], columns: int, capacity: int) -> None:
        """Take the cache of ``rows`` of ``stem`` over, of which the longest has ``columns`` columns."""
        index = torch.tensor(rows, device=self.network.device)  # (k,)
        if stem.joinable:
            if not isinstance(self._cache, SlotCache):
                self._cache = SlotCache.like(stem.cache)
            self._cache.add(stem.cache, index, columns, capacity)
            self.width = max(self.width, columns)
        else:
            if stem.cache is not None:
                stem.cache.reorder_cache(index)
            self._cache, self.width = stem.cache, stem.width

    def step(self) -> Tensor:
        """Read each sample's newest token; gives back the logits of what follows, ``(n, V)``."""
        device = self.network.device
        if self._cache is None or self.network.outgrown([sample.length for sample in self.samples]):
            return self._anew()
        lengths = torch.tensor([[sample.length] for sample in self.samples], device=device)  # (n, 1)
        ids = torch.tensor([[sample.ids[-1]] for sample in self.samples], device=device)  # (n, 1)
        self.width += 1
        mask = torch.arange(self.width, device=device) >= self.width - lengths  # (n, width)
        shifts = torch.tensor([[sample.shift] for sample in self.samples], device=device)  # (n, 1)
        logits, self._cache = self.network.forward(ids, mask.long(), lengths - 1 + shifts, self._cache)
        return logits

    def _anew(self) -> Tensor:
        """Read every sample's whole text; gives back what ``step`` does."""
        stem = self.network.read([sample.text for sample in self.samples], [sample.shown for sample in self.samples])
        self._cache, self.width = None, 0
        self._take(stem, list(range(len(self.samples))), stem.width, len(self.samples))
        return stem.logits

    def prefix(self, row: int) -> Prefix | None:
        """A copy of what was read of a sample, all but its newest token; None where rows cannot be told apart."""
        if not isinstance(self._cache, SlotCache):
            return None
        tokens = self.samples[row].length - 1
        return prefix_of(self._cache, row, tokens, self.network.factors(tokens))

    def remove_done(self) -> None:
        """Let go of the samples that are done, at once or, where that means a copy of the whole cache, in groups."""
        keep = [row for row, sample in enumerate(self.samples) if sample.alive]
        least = 1 if isinstance(self._cache, SlotCache) else COMPACT_SHARE * len(self.samples)
        if len(self.samples) - len(keep) >= least or not keep:
            self._keep(keep)

    def remove(self, row: int) -> Sample:
        """Take a sample out before it is done."""
        sample = self.samples[row]
        self._keep([other for other in range(len(self.samples)) if other != row])
        return sample

    def _keep(self, rows: list[int]) -> None:
        """Keep these rows, ascending, in any order."""
        device, count = self.network.device, len(rows)
        if isinstance(self._cache, SlotCache):
            to = sorted(set(range(count)) - set(rows))
            source = [row for row in rows if row >= count]  # as many: what lies behind fills the gaps
            for place, row in zip(to, source, strict=True):
                self.samples[place] = self.samples[row]
            del self.samples[count:]
            self.width = max((sample.length - 1 for sample in self.samples), default=0)
            moved = torch.tensor([to, source], dtype=torch.long, device=device)  # (2, k)
            self._cache.shrink(moved[0], moved[1], count, self.width)
        else:
            self.samples = [self.samples[row] for row in rows]
            if not rows:
                self._cache, self.width = None, 0
            elif self._cache is not None:
                self._cache.reorder_cache(torch.tensor(rows, device=device))

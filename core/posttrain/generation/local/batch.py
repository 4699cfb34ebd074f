"""The batch of running completions, each of which grows by a token at each step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posttrain.generation.local.cache import ROOM, ROOM_SHARE, SlotCache
from posttrain.generation.local.prefill import Network, Prefill
from posttrain.generation.local.prefixes import Prefix, prefix_of
from posttrain.generation.local.sample import Sample

#: Where rows cannot be exchanged, the share of finished ones at which the cache is copied without them.
COMPACT_SHARE = 1 / 8


class Batch:
    """Samples that are read except for their newest token, and the keys and values of what was read.

    With a cache that rows can join, samples join and leave at any step. With any other (layers with a state, positions
    that follow from the columns) they start together, and others join only when all of them are done.
    """

    def __init__(self, network: Network):
        """Start with an empty batch."""
        self.network = network
        self.samples: list[Sample] = []
        self.width = 0
        """Columns of the cache, padding included."""
        self._cache: Any = None
        self._ahead = 0
        """Columns read since the last call of ``keep``."""
        self._mask: Any = None
        """Columns that each row saw in the last pass, ``(n, width)`` bool."""
        self._experts: Tensor | None = None
        """Experts of the tokens of the last pass, ``(n, t, layers, choices)``, where they are recorded."""
        self._seen: Tensor | None = None
        """Columns of each row, ``(n, width)`` bool, where some have holes."""

    @property
    def open(self) -> bool:
        """Whether samples may join now."""
        return not self.samples or isinstance(self._cache, SlotCache)

    def join(self, stem: Prefill, rows: list[int], samples: list[Sample], capacity: int) -> None:
        """Add samples whose texts, but for the newest token, are ``rows`` of ``stem``.

        ``capacity`` is the largest number of samples that the batch may reach. A stem that cannot be shared is used up.
        """
        if not samples:
            return
        self._take(stem, rows, max(sample.length - 1 for sample in samples), capacity)
        self.samples += samples

    def _take(self, stem: Prefill, rows: list[int], columns: int, capacity: int) -> None:
        """Copy the cache of ``rows`` of ``stem``, of which the longest has ``columns`` columns."""
        self.align()
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

    def step(self, following: list[list[int]] | None = None) -> Tensor:
        """Read each sample's newest token and the tokens ``following`` it; return logits ``(n, 1 + k, V)``.

        Some rows may have fewer than ``k`` following tokens. ``keep`` says afterwards how many of them stay.
        """
        if self._cache is None or self.network.outgrown([sample.length for sample in self.samples]):
            return self._anew()[:, None]
        self._ahead = 0
        following = following or [[] for _ in self.samples]
        if any(following):
            self.reserve(1 + max(map(len, following)))
        return self.read([[sample.ids[-1], *own] for sample, own in zip(self.samples, following, strict=True)])

    def reserve(self, new: int) -> None:
        """Make room for ``new`` columns that ``keep`` may take back."""
        self._cache.reserve(new)

    def read(self, tokens: list[list[int]]) -> Tensor:
        """Read the next tokens of each row; return the logits after each, ``(n, t, V)``."""
        device, new, old = self.network.device, max(map(len, tokens)), self._ahead
        ids = torch.tensor([own + [0] * (new - len(own)) for own in tokens], device=device)  # (n, t)
        known = torch.tensor([[sample.length - 1 + old] for sample in self.samples], device=device)  # (n, 1)
        seen = torch.arange(self.width, device=device) >= self.width - known if self._seen is None else self._seen
        self._mask = torch.cat([seen, seen.new_ones(len(tokens), new)], 1)  # (n, width)
        self.width += new
        self._ahead += new
        if self._seen is not None:
            self._seen = self._mask
        shifts = torch.tensor([[sample.shift] for sample in self.samples], device=device)  # (n, 1)
        places = known + torch.arange(new, device=device) + shifts  # (n, t)
        logits, self._cache, self._experts = self.network.forward(ids, self._mask.long(), places, self._cache, last=new)
        return logits

    def keep(self, counts: list[int]) -> None:
        """Keep the first ``counts[i]`` of the tokens of row ``i`` that were read since the last call, at least one.

        Columns that no row keeps are cut. What else a row does not keep is a hole, which its mask hides, until enough
        of them are worth a copy. A sliding window counts columns: with one, every hole is closed at once.
        """
        new, self._ahead, most = self._ahead, 0, max(counts)
        if self._experts is not None:
            for sample, found, count in zip(self.samples, self._experts, counts, strict=True):
                sample.note(found[:count], sample.length - 1 - count)
            self._experts = None
        if not isinstance(self._cache, SlotCache) or min(counts) == new:
            return
        self._cache.cut(new - most)
        self.width -= new - most
        if min(counts) == most and self._seen is None:
            return
        device = self.network.device
        place = torch.arange(self.width, device=device) - (self.width - most)  # of each column among the new ones
        self._seen = self._mask[:, : self.width] & (place < torch.tensor(counts, device=device)[:, None])
        holes = self.width - int(self._seen.sum(1).max())
        if self._cache.windowed or holes > max(ROOM, int(self.width * ROOM_SHARE)):
            self.align()

    def align(self) -> None:
        """Close the holes: move each row's columns to the right."""
        if self._seen is None:
            return
        seen, self._seen = self._seen, None
        lengths = seen.sum(1, keepdim=True)  # (n, 1)
        columns = torch.arange(self.width, device=seen.device)
        rows = (seen != (columns >= self.width - lengths)).any(1).nonzero()[:, 0]  # (k,)
        width = int(lengths.max())
        order = seen[rows].long().sort(dim=1, stable=True).indices[:, self.width - width :]  # (k, new width)
        # Rows that stay where they are need no copy: their columns end where those of the others now end.
        self._cache.align(rows, order)
        self.width = width

    def _anew(self) -> Tensor:
        """Read every sample's whole text again; return the logits of the next token ``(n, V)``."""
        stem = self.network.read([sample.text for sample in self.samples], [sample.shown for sample in self.samples])
        self._cache, self.width, self._seen, self._ahead = None, 0, None, 1
        self._take(stem, list(range(len(self.samples))), stem.width, len(self.samples))
        for sample, experts in zip(self.samples, stem.experts or (), strict=False):
            sample.note(experts)
        return stem.logits

    def prefix(self, row: int) -> Prefix | None:
        """Copy what was read of a sample, all but its newest token; None where rows cannot be told apart."""
        if not isinstance(self._cache, SlotCache):
            return None
        self.align()
        tokens = self.samples[row].length - 1
        return prefix_of(self._cache, row, tokens, self.network.factors(tokens))

    def remove_done(self) -> None:
        """Remove finished samples, at once or, where that means a copy of the whole cache, in groups."""
        keep = [row for row, sample in enumerate(self.samples) if sample.alive]
        least = 1 if isinstance(self._cache, SlotCache) else COMPACT_SHARE * len(self.samples)
        if len(self.samples) - len(keep) >= least or not keep:
            self._keep(keep)

    def remove(self, row: int) -> Sample:
        """Remove a sample before it is done."""
        sample = self.samples[row]
        self._keep([other for other in range(len(self.samples)) if other != row])
        return sample

    def _keep(self, rows: list[int]) -> None:
        """Keep these rows, given in ascending order; they may be reordered."""
        self.align()
        device, count = self.network.device, len(rows)
        if isinstance(self._cache, SlotCache):
            to = sorted(set(range(count)) - set(rows))
            source = [row for row in rows if row >= count]  # as many as the gaps: rows from the end fill them
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

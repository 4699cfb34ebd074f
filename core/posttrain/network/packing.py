"""Packing of sequences into one row, each alone or continuing a prefix that it shares with others.

A prompt that several sequences begin with (the two sides of a pair, the completions of a group) is computed once: its
segment comes first, and the completions' segments attend to it and to themselves. A common beginning of several prompts
(a system prompt, examples) is computed once too, as a trunk that branches. Every sequence sees exactly the tokens that
it would see alone, at the same positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from posttrain.contract.views import Sequence

#: Shorter prompts, and shorter beginnings of prompts, do not pay for a second kernel call.
SHORTEST_PREFIX = 8
SHORTEST_TRUNK = 16


@dataclass
class PackedRow:
    """One packed row of N tokens."""

    ids: Tensor
    """Token ids ``(N,)``."""
    positions: Tensor
    """Position ``(N,)`` of each token in its own sequence."""
    lengths: list[int]
    """Tokens of each segment, in the order of the row."""
    parents: list[int]
    """Index of the earlier segment that a segment continues, -1 for the first of a sequence."""
    places: list[Tensor]
    """For each sequence ``(n,)``: indices of its tokens in the row."""


def pack_sequences(sequences: list[Sequence], share: bool) -> PackedRow:
    """Pack ``sequences`` into a row; with ``share``, common beginnings of prompts only once."""
    groups: dict[bytes | int, list[int]] = {}  # by prompt
    families: dict[bytes, _PrefixGroup] = {}
    for index, sequence in enumerate(sequences):
        length, key = _prompt(sequence, share)
        if key is not None and key not in groups:
            families.setdefault(_family(key), _PrefixGroup()).add(sequence.content[:length], key)
        groups.setdefault(index if key is None else key, []).append(index)
    row = _Row(sequences)
    for name in groups:
        family = families[_family(name)] if isinstance(name, bytes) else None
        if family is None or not family.saved:
            row.branch(groups[name], _ROOT)
        elif name == family.keys[0]:  # the whole family follows
            first = sequences[groups[name][0]]
            trunk = row.add(first.ids[: family.shared], _ROOT)
            for key in family.keys:
                row.branch(groups[key], trunk)
    ordered = [row.places[index] for index in range(len(sequences))]
    return PackedRow(torch.cat(row.ids), torch.cat(row.positions), row.lengths, row.parents, ordered)


def beside(rows: list[PackedRow], members: list[list[int]]) -> PackedRow:
    """Concatenate packed rows, each with the sequences numbered ``members``, which together are all."""
    places: dict[int, Tensor] = {}
    lengths: list[int] = []
    parents: list[int] = []
    tokens = 0
    for row, own in zip(rows, members, strict=True):
        places |= {index: place + tokens for index, place in zip(own, row.places, strict=True)}
        parents += [parent + len(lengths) if parent >= 0 else -1 for parent in row.parents]
        lengths += row.lengths
        tokens += len(row.ids)
    ids, positions = torch.cat([row.ids for row in rows]), torch.cat([row.positions for row in rows])
    return PackedRow(ids, positions, lengths, parents, [places[index] for index in range(len(places))])


def packed_tokens(sequences: list[Sequence], share: bool) -> int:
    """Return the number of tokens of the row that ``pack_sequences`` would make."""
    return PackedCost(share).add(sequences)


class PackedCost:
    """Number of tokens of the row that ``pack_sequences`` would make of the sequences added so far."""

    def __init__(self, share: bool):
        self.share = share
        self._total = 0
        self._prompts: set[bytes] = set()
        self._families: dict[bytes, _PrefixGroup] = {}

    def add(self, sequences: list[Sequence]) -> int:
        """Add sequences; return the tokens of all together."""
        for sequence in sequences:
            length, key = _prompt(sequence, self.share)
            self._total += len(sequence) - (length if key in self._prompts else 0)
            if key is not None and key not in self._prompts:
                self._prompts.add(key)
                family = self._families.setdefault(_family(key), _PrefixGroup())
                before = family.saved
                family.add(sequence.content[:length], key)
                self._total -= family.saved - before
        return self._total


@dataclass
class _PrefixGroup:
    """Different prompts with a common beginning."""

    keys: list[bytes] = field(default_factory=list)
    first: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """Content of the first of them."""
    shared: int = 0
    """Tokens of the common beginning."""

    def add(self, prompt: Tensor, key: bytes) -> None:
        if not self.keys:
            self.first, self.shared = prompt, len(prompt)
        self.keys.append(key)
        length = min(self.shared, len(prompt))
        unlike = (self.first[:length] != prompt[:length]).nonzero()
        self.shared = int(unlike[0]) if len(unlike) else length

    @property
    def saved(self) -> int:
        """Number of tokens not computed again; 0 where a trunk does not pay."""
        return (len(self.keys) - 1) * self.shared if self.shared >= SHORTEST_TRUNK else 0


def _family(key: bytes) -> bytes:
    return key[: 8 * SHORTEST_PREFIX]  # of int64


def _prompt(sequence: Sequence, share: bool) -> tuple[int, bytes | None]:
    """Return the tokens before the first trained one and a key that equal prompts share; None if not to be shared.

    Prompts with different images have different keys. Never the whole sequence: a segment has at least one token.
    """
    trained = sequence.trained.nonzero()
    length = int(trained[0]) if share and len(trained) else 0
    return length, sequence.content[:length].numpy().tobytes() if length >= SHORTEST_PREFIX else None


@dataclass
class _PrefixNode:
    """Prefix that further segments may continue."""

    segment: int
    """Index of its last segment, -1 for the empty prefix."""
    places: Tensor
    """Indices ``(n,)`` of all its tokens."""


_ROOT = _PrefixNode(-1, torch.zeros(0, dtype=torch.int64))


class _Row:
    """A packed row under construction."""

    def __init__(self, sequences: list[Sequence]) -> None:
        self.sequences = sequences
        self.places: dict[int, Tensor] = {}
        self.ids: list[Tensor] = []
        self.positions: list[Tensor] = []
        self.lengths: list[int] = []
        self.parents: list[int] = []
        self.end = 0

    def add(self, ids: Tensor, stem: _PrefixNode) -> _PrefixNode:
        """Append a segment that continues ``stem``; return the extended prefix."""
        position = len(stem.places)
        self.ids.append(ids)
        self.positions.append(torch.arange(position, position + len(ids)))
        self.lengths.append(len(ids))
        self.parents.append(stem.segment)
        begin, self.end = self.end, self.end + len(ids)
        return _PrefixNode(len(self.lengths) - 1, torch.cat([stem.places, torch.arange(begin, self.end)]))

    def branch(self, members: list[int], stem: _PrefixNode) -> None:
        """Append the sequences ``members``, which share one prompt, after its prefix ``stem``."""
        if len(members) > 1:
            first = self.sequences[members[0]]
            length, _ = _prompt(first, share=True)
            if length > len(stem.places):
                stem = self.add(first.ids[len(stem.places) : length], stem)
        for index in members:
            self.places[index] = self.add(self.sequences[index].ids[len(stem.places) :], stem).places

"""How sequences are laid behind each other in one row: each alone, or completions behind a prompt they share.

A prompt that several sequences begin with (the two sides of a pair, the completions of a group) is computed once: its
segment stands first, and the completions' segments attend to it and to themselves. Every sequence sees exactly the
tokens that it would see alone, at the same positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.views import Sequence

#: Shorter prompts are not worth a second kernel call.
SHORTEST_PREFIX = 8


@dataclass
class Layout:
    """One packed row of N tokens."""

    ids: Tensor
    """``(N,)``."""
    positions: Tensor
    """``(N,)``: each token's position in its own sequence."""
    lengths: list[int]
    """Tokens of each segment, in the order of the row."""
    parents: list[int]
    """Index of the segment that a segment continues, -1 for one that begins a sequence."""
    places: list[Tensor]
    """For each sequence ``(n,)``: where in the row each of its tokens lies."""


def lay_out(sequences: list[Sequence], share: bool) -> Layout:
    """Place ``sequences`` in a row, prompts that occur more than once only once where ``share``."""
    groups: dict[bytes | int, list[int]] = {}
    prompts = [_prompt(sequence, share) for sequence in sequences]
    for index, (_, key) in enumerate(prompts):
        groups.setdefault(index if key is None else key, []).append(index)
    row = _Row()
    places: dict[int, Tensor] = {}
    for members in groups.values():
        if len(members) == 1:
            (index,) = members
            places[index] = row.add(sequences[index].ids, 0, -1)
            continue
        length, _ = prompts[members[0]]
        parent = len(row.lengths)
        prompt = row.add(sequences[members[0]].ids[:length], 0, -1)
        for index in members:
            own = row.add(sequences[index].ids[length:], length, parent)
            places[index] = torch.cat([prompt, own])
    ordered = [places[index] for index in range(len(sequences))]
    return Layout(torch.cat(row.ids), torch.cat(row.positions), row.lengths, row.parents, ordered)


def packed_tokens(sequences: list[Sequence], share: bool) -> int:
    """Tokens of the row that ``lay_out`` would make."""
    return PackedCost(share).add(sequences)


class PackedCost:
    """Tokens of the row that ``lay_out`` would make of the sequences added so far."""

    def __init__(self, share: bool):
        self.share = share
        self.total = 0
        self._prompts: set[bytes] = set()

    def add(self, sequences: list[Sequence]) -> int:
        """Add sequences; returns the tokens of all together."""
        for sequence in sequences:
            length, key = _prompt(sequence, self.share)
            self.total += len(sequence) - (length if key in self._prompts else 0)
            if key is not None:
                self._prompts.add(key)
        return self.total


def _prompt(sequence: Sequence, share: bool) -> tuple[int, bytes | None]:
    """Tokens before the first trained one and a key that equal prompts share; None where it is not to be shared.

    Never the whole sequence: a segment has at least one token.
    """
    trained = sequence.trained.nonzero()
    length = int(trained[0]) if share and len(trained) else 0
    return length, sequence.ids[:length].numpy().tobytes() if length >= SHORTEST_PREFIX else None


class _Row:
    def __init__(self) -> None:
        self.ids: list[Tensor] = []
        self.positions: list[Tensor] = []
        self.lengths: list[int] = []
        self.parents: list[int] = []
        self.end = 0

    def add(self, ids: Tensor, position: int, parent: int) -> Tensor:
        """Append a segment whose first token is at ``position`` of its sequence; returns its places."""
        self.ids.append(ids)
        self.positions.append(torch.arange(position, position + len(ids)))
        self.lengths.append(len(ids))
        self.parents.append(parent)
        self.end += len(ids)
        return torch.arange(self.end - len(ids), self.end)

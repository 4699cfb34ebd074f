"""What attention needs to know of a packed row, worked out once for all layers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


@dataclass
class Pieces:
    """Pieces of a row that are equally long."""

    count: int
    length: int
    places: Tensor | slice
    """Where their tokens lie, ``(count * length,)``; a slice where they follow each other."""

    def cut(self, states: Tensor) -> Tensor:
        """From ``(heads, N, d)`` to ``(count, heads, length, d)``; a view where they follow each other."""
        found = states[:, self.places] if isinstance(self.places, slice) else states.index_select(1, self.places)
        return found.unflatten(1, (self.count, self.length)).transpose(0, 1)


@dataclass
class Shape:
    """The segments of one length that continue equally long texts: a kernel takes them together."""

    own: Pieces
    before: Pieces | None
    """What each of them continues, from its beginning."""
    mask: Tensor | None
    """``(length, before + length)``: what each token sees, where that is more than its own segment."""


@dataclass
class Segments:
    """The segments of a packed row of N tokens, in its order (see ``layout.Layout``)."""

    lengths: list[int]
    parents: list[int]
    """Index of the earlier segment that a segment continues, -1 for one that begins a sequence."""
    device: torch.device

    @cached_property
    def begins(self) -> list[int]:
        """Where each segment begins, and where the row ends."""
        return [0, *accumulate(self.lengths)]

    @cached_property
    def lines(self) -> list[list[int]]:
        """The segments that each segment continues, the one that begins the sequence first."""
        found: list[list[int]] = []
        for parent in self.parents:
            found.append([*found[parent], parent] if parent >= 0 else [])
        return found

    @cached_property
    def seen(self) -> list[int]:
        """Tokens that the last token of each segment sees: those that the segment continues, and its own."""
        return [n + sum(self.lengths[s] for s in line) for n, line in zip(self.lengths, self.lines, strict=True)]

    @cached_property
    def shapes(self) -> list[Shape]:
        """The segments by their length and the length of what they continue, in the order of the first of each."""
        found = []
        for members in self._alike:
            length, seen = self.lengths[members[0]], self.seen[members[0]]
            before, mask = None, None
            if seen > length:
                before = self._pieces([s for m in members for s in self.lines[m]], len(members))
                mask = torch.ones(length, seen, dtype=torch.bool, device=self.device).tril(seen - length)
            found.append(Shape(self._pieces(members, len(members)), before, mask))
        return found

    @cached_property
    def _alike(self) -> list[list[int]]:
        found: dict[tuple[int, int], list[int]] = {}
        for segment, shape in enumerate(zip(self.lengths, self.seen, strict=True)):
            found.setdefault(shape, []).append(segment)
        return list(found.values())

    def _pieces(self, segments: list[int], count: int) -> Pieces:
        """``count`` pieces, which these segments make up one after the other."""
        length = sum(self.lengths[s] for s in segments) // count
        if segments == list(range(segments[0], segments[0] + len(segments))):
            return Pieces(count, length, slice(self.begins[segments[0]], self.begins[segments[-1] + 1]))
        return Pieces(count, length, self._places(segments))

    def _places(self, segments: list[int]) -> Tensor:
        """Where the tokens of these segments lie, ``(n,)``."""
        return torch.cat([torch.arange(self.begins[s], self.begins[s + 1]) for s in segments]).to(self.device)

    @cached_property
    def order(self) -> Tensor | None:
        """For each token of the row ``(N,)`` its place when segments of one shape stand next to each other.

        None where they do already.
        """
        segments = [m for members in self._alike for m in members]
        if segments == sorted(segments):
            return None
        return self._places(segments).argsort()

    @cached_property
    def query_ends(self) -> Tensor:
        """Where segments begin and the last one ends, ``(segments + 1,)`` int32."""
        return torch.tensor(self.begins, dtype=torch.int32, device=self.device)

    @cached_property
    def key_ends(self) -> Tensor:
        """The same for the keys that ``keys`` gathers, ``(segments + 1,)`` int32."""
        return torch.tensor([0, *accumulate(self.seen)], dtype=torch.int32, device=self.device)

    @cached_property
    def keys(self) -> Tensor | None:
        """Places in the row of the keys that each segment sees, one segment after the other, ``(sum(seen),)``.

        None where every segment sees itself alone.
        """
        if all(parent < 0 for parent in self.parents):
            return None
        return self._places([s for segment, line in enumerate(self.lines) for s in (*line, segment)])

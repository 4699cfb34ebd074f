"""What attention needs to know of a packed row, worked out once for all layers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


@dataclass
class Segments:
    """The segments of a packed row of N tokens, in its order (see ``layout.Layout``)."""

    lengths: list[int]
    parents: list[int]
    """Index of the segment that a segment continues, -1 for one that begins a sequence."""
    device: torch.device

    @cached_property
    def begins(self) -> list[int]:
        """Where each segment begins, and where the row ends."""
        return [0, *accumulate(self.lengths)]

    @cached_property
    def seen(self) -> list[int]:
        """Tokens that the last token of each segment sees: the prompt's and the segment's."""
        return [n + (self.lengths[p] if p >= 0 else 0) for n, p in zip(self.lengths, self.parents, strict=True)]

    @cached_property
    def shapes(self) -> dict[tuple[int, int], tuple[list[int], list[int]]]:
        """(Length, length of the parent) -> where such segments begin and where their parents do."""
        found: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
        for length, begin, parent in zip(self.lengths, self.begins, self.parents, strict=False):
            starts, prompts = found.setdefault((length, self.lengths[parent] if parent >= 0 else 0), ([], []))
            starts.append(begin)
            prompts.append(self.begins[parent] if parent >= 0 else 0)
        return found

    @cached_property
    def order(self) -> Tensor | None:
        """For each token of the row ``(N,)`` its place when segments of one shape stand next to each other.

        None where they do already.
        """
        places = [
            place
            for (length, _), (starts, _) in self.shapes.items()
            for start in starts
            for place in range(start, start + length)
        ]
        if places == sorted(places):
            return None
        return torch.tensor(places).argsort().to(self.device)

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
        pieces = []
        for segment, parent in enumerate(self.parents):
            if parent >= 0:
                pieces.append(torch.arange(self.begins[parent], self.begins[parent + 1]))
            pieces.append(torch.arange(self.begins[segment], self.begins[segment + 1]))
        return torch.cat(pieces).to(self.device)

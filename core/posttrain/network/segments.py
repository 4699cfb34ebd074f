"""Segments of a packed row as attention needs them, computed once for all layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function

from posttrain.network.context import Context


@dataclass
class Pieces:
    """Pieces of a row of equal length."""

    count: int
    length: int
    places: Tensor | slice
    """Indices of their tokens, ``(count * length,)``; a slice where they are contiguous."""

    def cut(self, states: Tensor) -> Tensor:
        """Gather ``(heads, N, d)`` to ``(count, heads, length, d)``; a view where they are contiguous."""
        found = states[:, self.places] if isinstance(self.places, slice) else states.index_select(1, self.places)
        return found.unflatten(1, (self.count, self.length)).transpose(0, 1)


@dataclass
class Shape:
    """Segments of one length that continue equally long texts: a kernel takes them together."""

    own: Pieces
    before: Pieces | None
    """The text that each continues, from its beginning."""

    @property
    def seen(self) -> int:
        """Number of tokens of each text up to the end of its segment."""
        return self.own.length + (0 if self.before is None else self.before.length)


@dataclass
class Segments:
    """The segments of a packed row of N tokens, in its order (see ``packing.PackedRow``)."""

    lengths: list[int]
    parents: list[int]
    """Index of the earlier segment that a segment continues, -1 for the first of a sequence."""
    device: torch.device
    context: Context | None = None
    """The processes over which the row is cut; None where this one has all of it."""

    @cached_property
    def begins(self) -> list[int]:
        """Start of each segment, and the end of the row."""
        return [0, *accumulate(self.lengths)]

    @cached_property
    def lines(self) -> list[list[int]]:
        """Segments that each segment continues, the first of the sequence first."""
        found: list[list[int]] = []
        for parent in self.parents:
            found.append([*found[parent], parent] if parent >= 0 else [])
        return found

    @cached_property
    def seen(self) -> list[int]:
        """Number of tokens that the last token of each segment sees: those that the segment continues, and its own."""
        return [n + sum(self.lengths[s] for s in line) for n, line in zip(self.lengths, self.lines, strict=True)]

    @cached_property
    def shapes(self) -> list[Shape]:
        """Segments grouped by their length and that of what they continue, in the order of the first of each."""
        found = []
        for members in self._alike:
            length, seen = self.lengths[members[0]], self.seen[members[0]]
            before = None
            if seen > length:
                before = self._pieces([s for m in members for s in self.lines[m]], len(members))
            found.append(Shape(self._pieces(members, len(members)), before))
        return found

    @cached_property
    def _alike(self) -> list[list[int]]:
        found: dict[tuple[int, int], list[int]] = {}
        for segment, shape in enumerate(zip(self.lengths, self.seen, strict=True)):
            found.setdefault(shape, []).append(segment)
        return list(found.values())

    def _pieces(self, segments: list[int], count: int) -> Pieces:
        """Concatenate these segments and cut them into ``count`` pieces of equal length."""
        length = sum(self.lengths[s] for s in segments) // count
        if segments == list(range(segments[0], segments[0] + len(segments))):
            return Pieces(count, length, slice(self.begins[segments[0]], self.begins[segments[-1] + 1]))
        return Pieces(count, length, self._places(segments))

    def _places(self, segments: list[int]) -> Tensor:
        """Return the indices of the tokens of these segments, ``(n,)``."""
        return torch.cat([torch.arange(self.begins[s], self.begins[s + 1]) for s in segments]).to(self.device)

    @cached_property
    def order(self) -> Tensor | None:
        """For each token ``(N,)`` its index when segments of one shape are contiguous; None if they already are."""
        segments = [m for members in self._alike for m in members]
        if segments == sorted(segments):
            return None
        return self._places(segments).argsort()

    @cached_property
    def query_ends(self) -> Tensor:
        """Segment starts and the end of the last, ``(segments + 1,)`` int32."""
        return torch.tensor(self.begins, dtype=torch.int32, device=self.device)

    @cached_property
    def key_ends(self) -> Tensor:
        """Starts and end as ``query_ends``, for the keys that ``keys`` gathers, ``(segments + 1,)`` int32."""
        return torch.tensor([0, *accumulate(self.seen)], dtype=torch.int32, device=self.device)

    @cached_property
    def keys(self) -> Tensor | None:
        """Indices of the keys that each segment sees, segment by segment, ``(sum(seen),)``; None if only its own."""
        if all(parent < 0 for parent in self.parents):
            return None
        return self._places([s for segment, line in enumerate(self.lines) for s in (*line, segment)])


@dataclass
class Sight:
    """Visibility of a packed row's tokens in a layer, as if each text were alone.

    ``rule`` is the model's mask function in transformers, of the indices of text, head, query and key; it gets the
    positions of the tokens in their own texts. ``reach`` is the number of tokens within which only future tokens are
    hidden (a window's size); None where the model does not give it.
    """

    segments: Segments
    rule: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    reach: int | None = None

    @cached_property
    def masks(self) -> list[Tensor | None]:
        """Mask ``(length, seen)`` for each of the segments' shapes; None for a kernel's own causal mask."""
        return [self._mask(shape) for shape in self.segments.shapes]

    @cached_property
    def window(self) -> int | None:
        """Tokens that each sees, itself included, if the rule is a plain window; -1 for all; None for other rules."""
        if self._causal(max(self.segments.seen)):
            return -1
        size = self.reach
        if size is None:
            return None
        device = self.segments.device
        queries = torch.tensor([0, size // 2, size - 1, size, 2 * size + 1], device=device) + size  # (5,)
        places = [queries - size, queries - size + 1, queries, queries + 1]
        at = self._see(queries, torch.stack(places))  # (4, 5)
        return size if at.tolist() == [[False] * 5, [True] * 5, [True] * 5, [False] * 5] else None

    def _mask(self, shape: Shape) -> Tensor | None:
        length, seen, device = shape.own.length, shape.seen, self.segments.device
        if self._causal(seen):
            if shape.before is None:
                return None
            return torch.ones(length, seen, dtype=torch.bool, device=device).tril(seen - length)
        places = torch.arange(seen, device=device)
        return self._see(places[seen - length :, None], places[None])

    def _causal(self, seen: int) -> bool:
        return self.rule is causal_mask_function or (self.reach is not None and seen <= self.reach)

    def _see(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return whether ``queries`` see ``keys``, in shapes that broadcast."""
        first = queries.new_zeros(())
        return self.rule(first, first, queries, keys).expand(torch.broadcast_shapes(queries.shape, keys.shape))

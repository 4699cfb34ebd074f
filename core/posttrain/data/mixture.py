"""Mixtures of sets: how often each is read in one pass, and what happens when one ends first."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any


def rows_of_each(sizes: list[int], weights: list[float], exhausted: str) -> list[int]:
    """Return the number of rows that one pass takes from each set.

    ``leave``: its rows times its weight. Otherwise weights are shares: with ``repeat`` the pass lasts until every set
    has given all its rows, with ``stop`` until the first has.
    """
    if exhausted == "leave":
        return [int(weight) * size + _up_to(size, weight % 1) for size, weight in zip(sizes, weights, strict=True)]
    passes = [size / weight for size, weight in zip(sizes, weights, strict=True)]
    length = max(passes) if exhausted == "repeat" else min(passes)
    return [round(length * weight) for weight in weights]


def chosen_rows(first: int, size: int, count: int, seed: Any) -> list[int]:
    """Choose ``count`` of the rows ``first`` to ``first + size``: whole rounds of all, and a random part for the rest.

    Rows keep their order within each round.
    """
    numbers = list(range(first, first + size))
    part = random.Random(seed).sample(numbers, count % size)
    return numbers * (count // size) + sorted(part)


class Turns:
    """Sets read in turn, each as often as its weight, without knowing their lengths."""

    def __init__(self, sets: list[Any], weights: list[float], exhausted: str):
        """Take ``sets`` that can be iterated from their first row repeatedly."""
        self.sets, self.weights, self.exhausted = sets, weights, exhausted

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Yield one pass: the index of a set and a row of it."""
        if self.exhausted == "leave":
            readers = [_times(some, weight) for some, weight in zip(self.sets, self.weights, strict=True)]
        else:
            readers = [iter(some) for some in self.sets]
        credit, alive, unread = [0.0] * len(readers), list(range(len(readers))), set(range(len(readers)))
        while alive:
            for index in alive:
                credit[index] += self.weights[index]
            place = max(alive, key=lambda index: credit[index])
            credit[place] -= sum(self.weights[index] for index in alive)
            row = next(readers[place], None)
            if row is None and self.exhausted == "leave":
                alive.remove(place)
                continue
            if row is None:
                unread.discard(place)
                if self.exhausted == "stop" or not unread:
                    return
                readers[place] = iter(self.sets[place])
                row = next(readers[place])  # an empty set was refused before
            yield place, row


def _times(rows: Any, weight: float) -> Iterator[Any]:
    """Yield all rows as often as the whole part of ``weight``, then its fraction of them, spread evenly."""
    for _ in range(int(weight)):
        yield from rows
    fraction = weight % 1
    if fraction:
        for number, row in enumerate(rows):
            if _up_to(number + 1, fraction) > _up_to(number, fraction):
                yield row


def _up_to(rows: int, fraction: float) -> int:
    """Return how many of the first ``rows`` rows belong to a share of them."""
    return math.floor(rows * fraction + 0.5)

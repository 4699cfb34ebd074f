"""Correspondence of two texts of which one was normalised: case, accents, compatibility forms, white space.

Positions of both are mapped to one axis. A position of one text and a position of the other have the same place on it
exactly where the texts before them and after them correspond.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import lru_cache

#: Marks on letters, control and format characters: removed by normalisation. White space is left out too.
_DROPPED = {"Mn", "Cc", "Cf"}
#: Largest number of edits for which a longest common subsequence is searched.
_MOST_EDITS = 500
_WORD = re.compile(r"[a-z0-9]+|\S")


class TextPositions:
    """Places of the positions 0 to n of a text of n bytes.

    ``ends`` and ``starts`` differ only where the other text has something that this one lacks: a token that ends there
    comes before it, and one that starts there comes after it.
    """

    def __init__(self) -> None:
        self.ends = [0]
        self.starts = [0]

    def append(self, places: list[int]) -> None:
        """Append the places of the next positions."""
        self.ends += places
        self.starts += places


def text_positions(first: bytes, second: bytes) -> tuple[TextPositions, TextPositions]:
    """Map the positions of both texts to one axis."""
    pair = _Pair(first, second)
    if first == second:
        pair.equal(len(first))
        return pair.axes
    for first_start, first_end, second_start, second_end in _blocks(first, second):
        pair.gap(first_start, second_start)
        pair.block(first_end, second_end)
    pair.gap(len(first), len(second))
    return pair.axes


class _Pair:
    """Both axes while they are built from left to right."""

    def __init__(self, first: bytes, second: bytes):
        self.texts = (first, second)
        self.axes = (TextPositions(), TextPositions())
        self.at = [0, 0]
        self.place = 0

    def equal(self, size: int) -> None:
        """Append ``size`` bytes that are equal."""
        places = list(range(self.place + 1, self.place + size + 1))
        for side in (0, 1):
            self.axes[side].append(places)
            self.at[side] += size
        self.place += size

    def block(self, *stops: int) -> None:
        """Append text up to ``stops`` that means the same."""
        pieces = [text[at:stop] for text, at, stop in zip(self.texts, self.at, stops, strict=True)]
        if pieces[0] == pieces[1]:
            self.equal(len(pieces[0]))
        else:
            self.differing(*stops)

    def gap(self, *stops: int) -> None:
        """Append text up to ``stops`` that differs except for its common beginning and end."""
        first, second = (text[at:stop] for text, at, stop in zip(self.texts, self.at, stops, strict=True))
        tail = _common(first[::-1], second[::-1])  # a space belongs to the text after it
        ends = (stops[0] - tail, stops[1] - tail)
        first, second = first[: len(first) - tail], second[: len(second) - tail]
        if second.isspace():
            self.differing(ends[0], self.at[1])
        elif first.isspace():
            self.differing(self.at[0], ends[1])
        else:
            self.equal(_common(first, second))
        self.differing(*ends)
        self.equal(tail)

    def differing(self, *stops: int) -> None:
        """Append text up to ``stops`` that corresponds only as a whole: no position inside has a partner."""
        sizes = [stop - at for stop, at in zip(stops, self.at, strict=True)]
        if not any(sizes):
            return
        width = 2 * max(sizes)
        for side, size in enumerate(sizes):
            if size:
                inner = [self.place + 2 * step - side for step in range(1, size)]
                self.axes[side].append([*inner, self.place + width])
            else:
                self.axes[side].starts[-1] = self.place + width
            self.at[side] += size
        self.place += width


def _common(first: bytes, second: bytes) -> int:
    """Return the length of the common beginning."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _blocks(first: bytes, second: bytes) -> list[tuple[int, int, int, int]]:
    """Return start and end in the first and in the second text of equivalent characters, in order."""
    one, other = _Folded(first), _Folded(second)
    found: list[tuple[int, int, int, int]] = []
    for i, j in _matches(one.words, other.words):
        block = (one.starts[i], one.ends[i], other.starts[j], other.ends[j])
        if found and (block[0] < found[-1][1] or block[2] < found[-1][3]):  # one character there is several here
            last = found.pop()
            block = (last[0], max(block[1], last[1]), last[2], max(block[3], last[3]))
        found.append(block)
    return found


class _Folded:
    """A text in words without case, accents, compatibility forms and white space, with the origin of its characters."""

    def __init__(self, text: bytes):
        folded: list[str] = []
        self.starts: list[int] = []
        self.ends: list[int] = []
        at = 0
        for character in text.decode("utf-8", "surrogateescape"):
            size = len(character.encode("utf-8", "surrogateescape"))
            plains = _fold(character)
            if not plains and self.ends and self.ends[-1] == at:
                self.ends[-1] += size  # a mark is part of its letter
            for plain in plains:
                folded.append(plain)
                if plain != " ":
                    self.starts.append(at)
                    self.ends.append(at + size)
            at += size
        self.words: list[str] = _WORD.findall("".join(folded))


@lru_cache(maxsize=65536)
def _fold(character: str) -> str:
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
    spaced = (" " if one.isspace() else one for one in plain)
    return "".join(one for one in spaced if unicodedata.category(one) not in _DROPPED)


def _matches(first: list[str], second: list[str]) -> list[tuple[int, int]]:
    """Return pairs of indices of characters that are the same in both lists of words, increasing."""
    pairs = _longest("".join(first), "".join(second))
    if pairs is not None:
        return pairs
    found: list[tuple[int, int]] = []
    at, behind = [0, 0], [0, 0]  # words, and characters, done so far
    for i, j in [*_common_items(first, second), (len(first), len(second))]:
        one, other = "".join(first[at[0] : i]), "".join(second[at[1] : j])
        # Between equal words: words that are split differently, or a sign dropped from one of them.
        found += [(behind[0] + k, behind[1] + m) for k, m in _common_items(one, other)]
        size = len(first[i]) if i < len(first) else 0
        behind = [behind[0] + len(one), behind[1] + len(other)]
        found += [(behind[0] + k, behind[1] + k) for k in range(size)]
        behind = [behind[0] + size, behind[1] + size]
        at = [i + 1, j + 1]
    return found


def _common_items(first: Sequence[str], second: Sequence[str]) -> list[tuple[int, int]]:
    """Return index pairs of a common subsequence: a longest one, or a long one where there are very many edits."""
    pairs = _longest(first, second)
    if pairs is None:
        blocks = SequenceMatcher(None, first, second).get_matching_blocks()
        pairs = [(i + k, j + k) for i, j, size in blocks for k in range(size)]
    return pairs


def _longest(first: Sequence[str], second: Sequence[str]) -> list[tuple[int, int]] | None:
    """Return index pairs of a longest common subsequence; None where there are too many edits."""
    if first == second:
        return [(k, k) for k in range(len(first))]
    if not first or not second:
        return []
    trace = _edits(first, second)
    if trace is None:
        return None
    pairs = []
    i, j = len(first), len(second)
    for count in range(len(trace) - 1, -1, -1):
        diagonal = _from(trace[count], i - j, count)
        start = trace[count][diagonal]
        while i > max(start, 0) and j > max(start - diagonal, 0):
            i, j = i - 1, j - 1
            pairs.append((i, j))
        i, j = start, start - diagonal
    return pairs[::-1]


def _edits(first: Sequence[str], second: Sequence[str]) -> list[dict[int, int]] | None:
    """Return before each edit how far each diagonal was reached (Myers 1986, "An O(ND) difference algorithm").

    None where there are too many edits.
    """
    reach, trace = {1: 0}, []
    for count in range(_MOST_EDITS):
        trace.append(dict(reach))
        for diagonal in range(-count, count + 1, 2):
            came = _from(reach, diagonal, count)
            i = reach[came] + (came < diagonal)
            while i < len(first) and 0 <= i - diagonal < len(second) and first[i] == second[i - diagonal]:
                i += 1
            reach[diagonal] = i
            if i >= len(first) and i - diagonal >= len(second):
                return trace
    return None


def _from(reach: dict[int, int], diagonal: int, count: int) -> int:
    """Return the neighbouring diagonal from which the last of ``count`` edits leads to this one."""
    below = diagonal == -count or (diagonal != count and reach[diagonal - 1] < reach[diagonal + 1])
    return diagonal + 1 if below else diagonal - 1

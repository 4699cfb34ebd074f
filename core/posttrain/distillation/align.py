"""Alignment of two tokenisations of one text.

A span is the shortest run of text at whose ends both tokenisations have a boundary. The text of each token comes from
``token_bytes``, so nothing here depends on a kind of tokeniser, and sampled tokens are aligned as they were sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posttrain.distillation.text_diff import TextPositions, text_positions
from posttrain.distillation.token_bytes import is_byte_token, special_ids, token_bytes, vocabulary_bytes

#: Special tokens with the same meaning under any name; the first one that fits an id counts.
_ROLES = ("eos", "bos", "unk", "pad", "sep", "cls", "mask")


@dataclass(frozen=True)
class Alignment:
    """Span of text of each token. Spans are numbered from 0 in order, the same on both sides."""

    student_spans: Tensor
    """Span of each of the student's tokens, ``(n,)`` int64, never decreasing."""
    teacher_spans: Tensor
    """Span of each of the teacher's tokens, ``(m,)`` int64, never decreasing."""
    spans: int
    """S, the number of spans. A span without tokens on one side is text, or a special token, that the other lacks."""
    text: Tensor
    """``(S,)`` bool: the span has text on both sides. What is left are pairs of special tokens, such as the ends of
    both sequences, and spans without tokens on one side."""


def align(student_tokenizer: Any, student_ids: list[int], teacher_tokenizer: Any, teacher_ids: list[int]) -> Alignment:
    """Align two token lists of one text. Neither has to be its tokenizer's own encoding of that text."""
    student, teacher = token_bytes(student_tokenizer, student_ids), token_bytes(teacher_tokenizer, teacher_ids)
    found = spans(student, teacher)
    text = [any(student[one]) and any(teacher[other]) for one, other in found]
    return Alignment(
        student_spans=_numbers([one for one, _ in found]),
        teacher_spans=_numbers([other for _, other in found]),
        spans=len(found),
        text=torch.tensor(text, dtype=torch.bool),
    )


def _numbers(slices: list[slice]) -> Tensor:
    sizes = torch.tensor([one.stop - one.start for one in slices], dtype=torch.int64)
    return torch.arange(len(slices)).repeat_interleave(sizes)


def spans(student: Sequence[bytes], teacher: Sequence[bytes]) -> list[tuple[slice, slice]]:
    """Cut both lists, given as the text of each token, at every place where both have a boundary.

    Each token is in exactly one span, in order. Where the texts differ (case, accents, a dropped space) spans end at
    corresponding places. Text missing on one side becomes a span that is empty on that side, unless it is inside a
    token; then it stays with that token. Of tokens without text at the same place the last ones are paired.
    """
    one, other = text_positions(b"".join(student), b"".join(teacher))
    sides = (_places(student, one), _places(teacher, other))
    at, found = [0, 0], []
    while at[0] < len(student) or at[1] < len(teacher):
        stop = _textless(sides, at) or _closed(sides, at)
        found.append((slice(at[0], stop[0]), slice(at[1], stop[1])))
        at = stop
    return found


#: Start and end of each token on the common axis; equal for a token without text.
Places = list[tuple[int, int]]


def _places(tokens: Sequence[bytes], axis: TextPositions) -> Places:
    places, at = [], 0
    for text in tokens:
        end = at + len(text)
        places.append((axis.starts[at], axis.ends[end] if text else axis.starts[at]))
        at = end
    return places


def _textless(sides: tuple[Places, Places], at: list[int]) -> list[int] | None:
    """Return the end of the next span if it is one of tokens without text; None if text comes first."""
    first = _next_place(sides, at)
    runs = []
    for side, place in zip(sides, at, strict=True):
        stop = place
        while stop < len(side) and side[stop] == (first, first):
            stop += 1
        runs.append(stop - place)
    if not any(runs):
        return None
    longer, shorter = max(runs), min(runs)
    return [place + (run == longer or longer == shorter) for place, run in zip(at, runs, strict=True)]


def _closed(sides: tuple[Places, Places], at: list[int]) -> list[int]:
    """Return the end of the next span: the first place after its start that no token of either side crosses."""
    stop, reach = list(at), _next_place(sides, at) + 1
    grown = True
    while grown:
        grown = False
        for number, side in enumerate(sides):
            while stop[number] < len(side) and side[stop[number]][0] < reach:
                reach = max(reach, side[stop[number]][1])
                stop[number] += 1
                grown = True
    return stop


def _next_place(sides: tuple[Places, Places], at: list[int]) -> int:
    return min(side[place][0] for side, place in zip(sides, at, strict=True) if place < len(side))


def shared_vocabulary(student_tokenizer: Any, teacher_tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Return ids ``(k,)`` of the student's tokens, increasing, and of the teacher's equivalent ones, both int64.

    Tokens are equivalent if they write the same bytes in the middle of a text, whatever marks a word's beginning in
    their vocabulary. Special tokens are matched by role, then by name. No id occurs twice.
    """
    pairs: dict[int, int] = _special_pairs(student_tokenizer, teacher_tokenizer)
    student, teacher = _by_text(student_tokenizer), _by_text(teacher_tokenizer)
    pairs |= {one: teacher[text] for text, one in student.items() if text in teacher}
    ids = sorted(pairs)
    return torch.tensor(ids, dtype=torch.int64), torch.tensor([pairs[one] for one in ids], dtype=torch.int64)


def _by_text(tokenizer: Any) -> dict[bytes, int]:
    """Map text to id; of several with one text a token of characters precedes the byte fallback, then the lowest id."""
    found: dict[bytes, int] = {}
    for one, text in vocabulary_bytes(tokenizer).items():
        if text not in found or (len(text) == 1 and is_byte_token(tokenizer, found[text])):
            found[text] = one
    return found


def _special_pairs(student_tokenizer: Any, teacher_tokenizer: Any) -> dict[int, int]:
    pairs: dict[int, int] = {}
    roles = [
        (getattr(student_tokenizer, f"{role}_token_id"), getattr(teacher_tokenizer, f"{role}_token_id"))
        for role in _ROLES
    ]
    names = [
        {tokenizer.convert_ids_to_tokens(one): one for one in sorted(special_ids(tokenizer))}
        for tokenizer in (student_tokenizer, teacher_tokenizer)
    ]
    same = [(one, names[1][name]) for name, one in names[0].items() if name in names[1]]
    for one, other in roles + same:
        if one is not None and other is not None and one not in pairs and other not in pairs.values():
            pairs[one] = other
    return pairs

"""Duplicates of held-out rows in the training data: exact, with the same prompt, or near."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from posttrain.contract.messages import is_messages, message_text
from posttrain.data.rows import Rows
from posttrain.data.schemas import SHAPES

#: Words per shingle.
WORDS = 5
#: Jaccard similarity of shingles from which two rows are near duplicates.
NEAR = 0.8
#: A word, a character of a script without spaces, or another sign.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|[^\w\s]")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_OF_TEMPLATE = ("tools", "chat_template_kwargs")


@dataclass
class Overlap:
    """Held-out rows, of ``rows``, found in the training data; each counts once, under the first kind that fits."""

    rows: int
    exact: int = 0
    """Same columns with the same content."""
    prompt: int = 0
    """Another answer to the same prompt."""
    near: int = 0
    """Shingles of five words with a similarity of NEAR or more."""
    examples: list[str] = field(default_factory=list)
    """First of each kind, with both places."""

    def add(self, kind: str, held_out: str, train: str) -> None:
        """Count one row of a kind."""
        if not getattr(self, kind):
            self.examples.append(f"{kind}: {held_out} is {train}")
        setattr(self, kind, getattr(self, kind) + 1)

    def record(self) -> dict[str, Any]:
        """Return the counts for reports."""
        counts = {"exact": self.exact, "same_prompt": self.prompt, "near": self.near}
        return counts | ({"first": self.examples} if self.examples else {})

    def notes(self, name: str) -> list[str]:
        """Return a line if anything was found; ``name`` is the held-out set's."""
        found = ((self.exact, "as they are"), (self.prompt, "with another answer"), (self.near, "nearly"))
        kinds = ", ".join(f"{count} {words}" for count, words in found if count)
        which = f" of '{name}'" if name else ""
        if not kinds:
            return []
        return [f"held-out rows{which} that are also trained on: {kinds}, of {self.rows} ({'; '.join(self.examples)})"]


def find_overlap(train: Rows, held_out: Rows, most: int | None = None) -> Overlap:
    """Compare every held-out row with all training rows, none of them streamed.

    Near duplicates are searched for among the first ``most`` training rows only.
    """
    overlap = Overlap(len(held_out))
    whole, prompts = _places(train, _whole), _places(train, _prompt)
    left: list[int] = []
    for number, (origin, row) in enumerate(held_out.located()):
        place = whole.get(_whole(row, held_out.schema))
        asked = _prompt(row, held_out.schema)
        if place is not None:
            overlap.add("exact", origin, train.origin(place))
        elif asked is not None and asked in prompts:
            overlap.add("prompt", origin, train.origin(prompts[asked]))
        else:
            left.append(number)
    for number, place in sorted(_near(train, [held_out[n] for n in left], most).items()):
        overlap.add("near", held_out.origin(left[number]), train.origin(place))
    return overlap


def _places(rows: Rows, key: Any) -> dict[bytes, int]:
    """Return the first row with each key."""
    found: dict[bytes, int] = {}
    for number, row in enumerate(rows):
        name = key(row, rows.schema)
        if name is not None:
            found.setdefault(name, number)
    return found


def _content(row: dict[str, Any], schema: str) -> dict[str, Any]:
    names = {name for shape in SHAPES[schema] for name in shape.kinds} - set(_OF_TEMPLATE)
    return {name: row[name] for name in sorted(names) if name in row}


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=repr).encode(), digest_size=16).digest()


def _whole(row: dict[str, Any], schema: str) -> bytes:
    return _digest(_content(row, schema))


def _prompt(row: dict[str, Any], schema: str) -> bytes | None:
    """Return a key of the prompt, equal for a prompt column and the turns before a last answer; None without one."""
    asked = row.get("prompt", row.get("prompt_ids"))
    messages = row.get("messages")
    if asked is None and is_messages(messages) and messages and messages[-1]["role"] == "assistant":
        asked = messages[:-1]
    return _digest(asked) if asked and schema != "prompt" else None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif is_messages(value):
        for message in value:
            yield message_text(message) if "role" in message else json.dumps(message, default=repr)
            yield from (json.dumps(call, sort_keys=True, default=repr) for call in message.get("tool_calls") or [])
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif value is not None:
        yield str(value)


def _shingles(row: dict[str, Any], schema: str) -> np.ndarray:
    """Hash the row's runs of five words, each once, sorted, (n,) uint64; a shorter row is one run."""
    words = _WORD.findall(" ".join(_strings(list(_content(row, schema).values()))).lower())
    numbers = np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)
    width = min(WORDS, len(words))
    runs = np.zeros(max(len(words) - width + 1, 0), np.uint64)
    for place in range(width):
        runs = (runs ^ numbers[place : place + len(runs)]) * _FACTOR
        runs ^= runs >> np.uint64(29)
    return np.unique(runs)


def _near(train: Rows, held_out: list[dict[str, Any]], most: int | None) -> dict[int, int]:
    """Map held-out rows that are near a training row, by number, to the first such row."""
    index = _Index([_shingles(row, train.schema) for row in held_out])
    found: dict[int, int] = {}
    for place, row in enumerate(islice(train, most) if len(index.values) else ()):
        for number in index.near(_shingles(row, train.schema)):
            found.setdefault(number, place)
    return found


class _Index:
    """Index of the held-out rows' shingles, which finds near rows without comparing all.

    A row that is near one of ``n`` shingles shares at least ``NEAR * n`` of them. So one with fewer of them in the
    whole index is near none; and of the rarest ``n - NEAR * n + 1`` at least one is shared.
    """

    def __init__(self, rows: list[np.ndarray]):
        self.rows = rows
        every = np.concatenate(rows) if rows else np.zeros(0, np.uint64)
        order = np.argsort(every, kind="stable")
        self.owners = np.repeat(np.arange(len(rows)), [len(row) for row in rows])[order]
        self.values, self.starts = np.unique(every[order], return_index=True)
        self.ends = np.append(self.starts[1:], len(every))

    def near(self, shingles: np.ndarray) -> Iterable[int]:
        """Return the numbers of the rows near these shingles."""
        need = math.ceil(NEAR * len(shingles) - 1e-9)
        places = np.minimum(np.searchsorted(self.values, shingles), len(self.values) - 1)
        known = places[self.values[places] == shingles]
        if not need or len(known) < need:
            return ()
        rarest = known[np.argsort(self.ends[known] - self.starts[known], kind="stable")][: len(known) - need + 1]
        owners = np.unique(np.concatenate([self.owners[self.starts[p] : self.ends[p]] for p in rarest]))
        return [int(number) for number in owners if self._alike(self.rows[number], shingles)]

    def _alike(self, row: np.ndarray, other: np.ndarray) -> bool:
        shared = len(np.intersect1d(row, other, assume_unique=True))
        return shared >= NEAR * (len(row) + len(other) - shared) - 1e-9

"""Tokenised examples in flat arrays: a row costs its tokens and a few numbers, not a tree of Python objects."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import torch

from posttrain.contract.images import Image
from posttrain.contract.views import Example, Sequence
from posttrain.data.convert import Row
from posttrain.data.tokens.sequence_specs import extra_columns
from posttrain.data.tokens.tokenise import Tokens

Arrays = dict[str, np.ndarray]
_STEP_COLUMNS: tuple[str, ...] = ("step_end", "step_label")


@dataclass
class Prepared:
    """Examples, built on access: ``len``, index and iteration, and a report of the tokenisation.

    ``arrays`` holds N tokens of S sequences of E examples: ``ids`` (N,) int32, ``trained`` (N,) bool, ``starts``
    (S + 1,), ``roles`` (S,) index into ``roles``, ``examples`` (E + 1,) index into the sequences, ``rows`` (E,) index
    into the rows; for steps also ``step_end`` (N,) bool and ``step_label`` (N,) float32; for prompts also their texts,
    ``texts`` in UTF-8 as uint8, with ``text_starts`` (E + 1,).
    """

    arrays: Arrays
    roles: list[str]
    columns: SequenceOf[dict[str, Any]]
    """Of each example, what is no token."""
    report: dict[str, Any]
    order: np.ndarray | None = None  # (E,) example numbers
    images: dict[int, tuple[Image, ...]] = field(default_factory=dict)
    """Images by sequence number."""

    def __len__(self) -> int:
        return len(self.columns) if self.order is None else len(self.order)

    def __getitem__(self, index: int) -> Example:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        place = range(len(self))[index]
        number = place if self.order is None else int(self.order[place])
        first, end = self.arrays["examples"][number : number + 2].tolist()
        sequences: dict[str, list[Sequence]] = {}
        for at in range(first, end):
            sequences.setdefault(self.roles[self.arrays["roles"][at]], []).append(self._sequence(at))
        return Example(sequences, dict(self.columns[number]))

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def _sequence(self, at: int) -> Sequence:
        start, end = self.arrays["starts"][at : at + 2].tolist()
        trained = torch.from_numpy(self.arrays["trained"][start:end].copy())
        per_token = {
            name: torch.from_numpy(self.arrays[name][start:end].copy())[trained]
            for name in _STEP_COLUMNS
            if name in self.arrays
        }
        ids = torch.from_numpy(self.arrays["ids"][start:end].astype(np.int64))
        return Sequence(ids, trained, per_token, images=self.images.get(at, ()))

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each example over all its sequences, ``(E,)``, in order."""
        totals = np.diff(self.arrays["starts"][self.arrays["examples"]])
        return totals if self.order is None else totals[self.order]

    def subset(self, indices: list[int] | np.ndarray) -> Prepared:
        """Return the examples at ``indices``, sharing the tokens; the report stays that of the whole."""
        numbers = np.arange(len(self)) if self.order is None else self.order
        chosen = numbers[np.asarray(indices, dtype=np.int64)]
        return Prepared(self.arrays, self.roles, self.columns, self.report, chosen, self.images)

    def shuffled(self, seed: int) -> Prepared:
        """Return the same examples in a random order determined by ``seed``."""
        numbers = list(range(len(self)))
        random.Random(seed).shuffle(numbers)
        return self.subset(numbers)


class Columns(SequenceOf[dict[str, Any]]):
    """What rows hold beside their tokens, read from the rows when it is asked for; prompts also as ``prompt_text``."""

    def __init__(self, row: Callable[[int], Row], schema: str, arrays: Arrays):
        self._row, self._schema, self._arrays = row, schema, arrays

    def __len__(self) -> int:
        return len(self._arrays["rows"])

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """Columns of one example."""
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        number = range(len(self))[index]
        found = extra_columns(self._row(int(self._arrays["rows"][number])), self._schema)
        if "texts" in self._arrays:
            first, end = self._arrays["text_starts"][number : number + 2].tolist()
            found["prompt_text"] = self._arrays["texts"][first:end].tobytes().decode("utf-8", "surrogatepass")
        return found


@dataclass
class Builder:
    """Collects tokenised examples into flat arrays."""

    steps: bool
    texts: bool = False
    """Whether each example comes with its prompt's text."""
    roles: list[str] = field(default_factory=list)
    images: dict[int, tuple[Image, ...]] = field(default_factory=dict)
    _ids: array[int] = field(default_factory=lambda: array("i"))
    _trained: bytearray = field(default_factory=bytearray)
    _step_end: bytearray = field(default_factory=bytearray)
    _step_label: array[float] = field(default_factory=lambda: array("f"))
    _starts: array[int] = field(default_factory=lambda: array("q", [0]))
    _roles: bytearray = field(default_factory=bytearray)
    _examples: array[int] = field(default_factory=lambda: array("q", [0]))
    _rows: array[int] = field(default_factory=lambda: array("q"))
    _texts: bytearray = field(default_factory=bytearray)
    _text_starts: array[int] = field(default_factory=lambda: array("q", [0]))

    def add(self, row: int, roles: dict[str, list[Tokens]], text: str = "") -> None:
        """Append one example, made of row number ``row``; ``text`` is its prompt's."""
        for role, sequences in roles.items():
            if role not in self.roles:
                self.roles.append(role)
            for tokens in sequences:
                self._ids.frombytes(tokens.ids.tobytes())
                self._trained += tokens.trained.tobytes()
                self._starts.append(len(self._ids))
                if tokens.images:
                    self.images[len(self._roles)] = tokens.images
                self._roles.append(self.roles.index(role))
                if self.steps:
                    self._add_steps(tokens)
        self._examples.append(len(self._roles))
        self._rows.append(row)
        if self.texts:
            self._texts += text.encode("utf-8", "surrogatepass")
            self._text_starts.append(len(self._texts))

    def _add_steps(self, tokens: Tokens) -> None:
        ends = np.zeros(len(tokens.ids), dtype=bool)
        labels = np.zeros(len(tokens.ids), dtype=np.float32)
        ends[tokens.marks] = True
        labels[tokens.marks] = tokens.labels
        self._step_end += ends.tobytes()
        self._step_label.frombytes(labels.tobytes())

    def arrays(self) -> Arrays:
        """Return everything collected, as ``Prepared`` describes it."""
        found = {
            "ids": np.asarray(self._ids, dtype=np.int32),
            "trained": np.frombuffer(bytes(self._trained), dtype=bool),
            "starts": np.asarray(self._starts, dtype=np.int64),
            "roles": np.frombuffer(bytes(self._roles), dtype=np.uint8),
            "examples": np.asarray(self._examples, dtype=np.int64),
            "rows": np.asarray(self._rows, dtype=np.int64),
        }
        if self.texts:
            found["texts"] = np.frombuffer(bytes(self._texts), dtype=np.uint8)
            found["text_starts"] = np.asarray(self._text_starts, dtype=np.int64)
        if self.steps:
            found["step_end"] = np.frombuffer(bytes(self._step_end), dtype=bool)
            found["step_label"] = np.asarray(self._step_label, dtype=np.float32)
        return found

"""Validated rows: read, renamed, checked against a schema and converted, before tokenisation."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from posttrain.contract.messages import is_messages
from posttrain.data import conversations, convert, pretokenised, row_file, schemas
from posttrain.data.convert import CONVERSIONS, Conversion, Row
from posttrain.data.mixture import Turns, chosen_rows, rows_of_each
from posttrain.data.row_file import SUFFIXES, RowFile
from posttrain.data.sources import Source, open_sources
from posttrain.errors import DataError
from posttrain.settings import DataSettings


@dataclass
class Rows:
    """Rows of one schema, with length, index and iteration; streamed ones can only be iterated, repeatedly."""

    schema: str
    """Schema of the rows, one of those accepted by ``read_rows``."""
    sources: list[Source]
    fingerprint: str = ""
    """Hash of the content and of all changes to it; empty for streamed rows."""
    streaming: bool = False
    conversions: dict[str, int] = field(default_factory=dict)
    _rows: list[Row] | RowFile = field(default_factory=list)
    _source_of: array[int] = field(default_factory=lambda: array("L"))
    _number_of: array[int] = field(default_factory=lambda: array("Q"))
    _stream: _Stream | None = None
    roles: tuple[str, ...] = ()
    """For forget-retain: the columns whose samples become sequences."""

    @property
    def notes(self) -> list[str]:
        """Conversions made, one line each; grows while streamed rows are read."""
        return [f"{text} ({count} row{'s' if count != 1 else ''})" for text, count in self.conversions.items()]

    @property
    def names(self) -> list[str]:
        """Sources as the user named them."""
        return [source.name for source in self.sources]

    def origin(self, index: int) -> str:
        """Return the origin of row ``index`` for messages: ``file.jsonl line 12``."""
        return self.sources[self._source_of[index]].origin(self._number_of[index])

    def located(self) -> Iterator[tuple[str, Row]]:
        """Yield origin and row, in order."""
        if self._stream is not None:
            for source, number, row in self._stream.pass_over(self.conversions):
                yield source.origin(number), row
            return
        yield from self.part(range(len(self._rows)))

    def part(self, numbers: range) -> Iterator[tuple[str, Row]]:
        """Yield origin and row of those numbers; not of streamed rows."""
        for index in numbers:
            yield self.origin(index), self._rows[index]

    def flush(self) -> None:
        """Make every row readable by forks of this process."""
        if isinstance(self._rows, RowFile):
            self._rows.flush()

    def __iter__(self) -> Iterator[Row]:
        return (row for _, row in self.located())

    def __len__(self) -> int:
        if self.streaming:
            raise TypeError("streamed rows have no length; iterate over them")
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        if self.streaming:
            raise TypeError("streamed rows have no index; iterate over them")
        return self._rows[index]

    def changed(self, change: Callable[[Row], Row], what: str) -> Rows:
        """Apply ``change`` to each row; ``what`` describes it in the notes. Not for streamed rows."""
        rows = [change(row) for row in self]
        made = hashlib.sha256(f"{self.fingerprint} {json.dumps(rows, default=repr)}".encode()).hexdigest()
        return replace(self, _rows=rows, fingerprint=made, conversions={**self.conversions, what: len(rows)})

    def subset(self, indices: list[int]) -> Rows:
        """Return the rows at ``indices``, in that order, with their origins."""
        rows = self._rows
        chosen = hashlib.sha256(f"{self.fingerprint} {indices}".encode()).hexdigest()
        return Rows(
            self.schema,
            self.sources,
            chosen,
            conversions=self.conversions,
            _rows=rows.chosen(indices) if isinstance(rows, RowFile) else [rows[index] for index in indices],
            _source_of=array("L", (self._source_of[index] for index in indices)),
            _number_of=array("Q", (self._number_of[index] for index in indices)),
            roles=self.roles,
        )


def read_rows(sources: Any, accepted: tuple[str, ...], settings: DataSettings, what: str = "data") -> Rows:
    """Read ``sources`` and check every row against the best-fitting schema among ``accepted``.

    ``sources`` is a list as ``Settings.data`` (files, folders, Hub ids, ``reasoning-gym:TASK``, each with an optional
    ``=weight``, or ``example``), a list of rows, or a ``datasets`` object. ``what`` names rows without a file. With
    ``settings.limit`` only the first rows are read; with ``settings.streaming`` the rest is read and checked during
    iteration. Raises DataError naming file, line and column.
    """
    opened = open_sources(sources, accepted, settings, what)
    if settings.streaming or any(source.streams for source in opened):
        return _streamed(opened, accepted, settings)
    rows = Rows("", opened, _rows=RowFile() if _are_large(opened) else [])
    digests = []
    before_weights: list[tuple[int, int]] = []
    for place, source in enumerate(opened):
        first = len(rows._rows)
        reader = _Reader(source, accepted, settings, rows.conversions)
        room = None if settings.limit is None else settings.limit - first
        for number, row in islice(reader, room):
            rows._rows.append(row)
            rows._source_of.append(place)
            rows._number_of.append(number)
        before_weights.append((first, len(rows._rows)))
        digests.append(source.digest(rows._rows[place] for place in range(first, len(rows._rows))))
        if reader.schema:
            rows.schema = _agree(rows.schema, reader, opened)
    if not rows._rows:
        raise DataError(f"{what}: limit is {settings.limit}, which leaves no row. Expected at least 1.")
    facts = [digests, [s.weight for s in opened], settings.columns, settings.limit, rows.schema, settings.seed]
    rows.fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    if settings.exhausted != "leave" or any(source.weight != 1 for source in opened):
        rows = rows.subset(_weighted(before_weights, opened, settings))
    return rows


def _are_large(sources: list[Source]) -> bool:
    """Whether the sources are files of JSON values, and large together."""
    paths = [source.path for source in sources]
    if any(path is None or path.suffix not in SUFFIXES for path in paths):
        return False
    return sum(path.stat().st_size for path in paths if path is not None) >= row_file.LARGE


def _agree(schema: str, reader: _Reader, opened: list[Source]) -> str:
    if schema and reader.schema != schema:
        raise DataError(
            f"{reader.source.name}: has schema '{reader.schema}', but {opened[0].name} has '{schema}'. "
            "Expected the same schema in all data of a run."
        )
    return reader.schema


def _weighted(parts: list[tuple[int, int]], opened: list[Source], settings: DataSettings) -> list[int]:
    """Return row numbers, with those of each source as often as its weight."""
    sizes, weights = [end - first for first, end in parts], [source.weight for source in opened]
    counts = rows_of_each(sizes, weights, settings.exhausted)
    if not sum(counts):
        raise DataError(f"{opened[0].name}: weight {opened[0].weight:g} leaves no row. Choose a larger weight.")
    chosen: list[int] = []
    for place, ((first, _), size, count) in enumerate(zip(parts, sizes, counts, strict=True)):
        if size:
            chosen += chosen_rows(first, size, count, settings.seed * 1000 + place)
    return chosen


def _streamed(opened: list[Source], accepted: tuple[str, ...], settings: DataSettings) -> Rows:
    stream = _Stream(opened, accepted, settings)
    schema = ""
    for source in opened:
        reader = _Reader(source, accepted, settings, {})
        next(iter(reader))
        schema = _agree(schema, reader, opened)
    return Rows(schema, opened, streaming=True, _stream=stream)


@dataclass
class _Stream:
    """Sources read in turn, each as often as its weight."""

    sources: list[Source]
    accepted: tuple[str, ...]
    settings: DataSettings

    def pass_over(self, notes: dict[str, int]) -> Iterator[tuple[Source, int, Row]]:
        """Iterate over every row once; the notes are those of this pass."""
        notes.clear()
        return islice(self._turns(notes), self.settings.limit)

    def _turns(self, notes: dict[str, int]) -> Iterator[tuple[Source, int, Row]]:
        readers = [_Reader(source, self.accepted, self.settings, notes) for source in self.sources]
        weights = [source.weight for source in self.sources]
        for place, found in Turns(readers, weights, self.settings.exhausted):
            yield self.sources[place], *found


class _Reader:
    """Checked and converted rows of one source, ``(number, row)``."""

    def __init__(self, source: Source, accepted: tuple[str, ...], settings: DataSettings, notes: dict[str, int]):
        self.source = source
        self.accepted = (source.schema,) if source.schema else accepted
        self.settings = settings
        self.notes = notes
        self.schema = ""  # the accepted schema of the converted rows
        self._fit: tuple[str, schemas.Shape] | None = None
        self._conversion: Conversion | None = None
        self._first: tuple[int, Row] = (0, {})

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        found = False
        for number, raw in self.source.read():
            found = True
            for row in self._checked(number, raw):
                yield number, row
        if not found:
            raise DataError(f"{self.source.name}: is empty, expected at least one row.")

    def _checked(self, number: int, raw: Row) -> list[Row]:
        origin = self.source.origin(number)
        try:
            row = conversations.usual_names(self._renamed(origin, raw), self.notes)
        except convert.Unconvertible as error:
            raise DataError(f"{origin}: {error}") from None
        if self._fit is None:
            self._fit, self._conversion = self._detect(origin, row)
            self.schema = self._conversion.target if self._conversion else self._fit[0]
        schema, shape = self._fit
        if any(name not in row for name in shape.required):
            self._refuse(origin, row)
        if self.source.text_only:
            row = schemas.from_text(row, shape)
        row = schemas.tidy(row, shape, self.source.filled)
        try:
            row = convert.same_form(row, schema, self.notes)
            if text := schemas.problem(row, shape):
                raise DataError(f"{origin}: {text}")
            self._same_form_as_first(origin, number, row)
            convert.note_repeated_prompt(row, self.notes)
            if shape.tokens:
                made = pretokenised.token_pair if schema == "preference" else pretokenised.plain_tokens
                return made(row, self.notes)
            if schema == "preference" and "prompt" not in row:
                row = convert.explicit_prompt(row, self.notes)
            if schema == "ranked":
                row = convert.ranked_by_score(row, self.notes)
            if schema == "scored" and self._conversion is None:
                return convert.single_scores(row, self.notes)
            if self._conversion is None:
                return [row]
            convert.note(self.notes, self._conversion.note)
            return self._conversion.apply(row)
        except convert.Unconvertible as error:
            raise DataError(f"{origin}: {error}") from None

    def _renamed(self, origin: str, raw: Row) -> Row:
        wanted = self.settings.columns or {}
        for new, old in wanted.items():
            if old not in raw:
                raise DataError(
                    f"{origin}: column '{old}', which --columns names for '{new}', is missing. "
                    f"The row has: {schemas.column_names(raw)}."
                )
        taken = set(wanted) | set(wanted.values())
        return {new: raw[old] for new, old in wanted.items()} | {k: v for k, v in raw.items() if k not in taken}

    def _detect(self, origin: str, row: Row) -> tuple[tuple[str, schemas.Shape], Conversion | None]:
        if fit := schemas.fitting(row, self.accepted):
            return fit, None
        for conversion in CONVERSIONS:
            if conversion.target in self.accepted and conversion.column in row:
                fit = schemas.fitting(row, (conversion.source,))
                if fit:
                    return fit, conversion
        raise DataError(f"{origin}: {schemas.missing(row, self.accepted)}")

    def _refuse(self, origin: str, row: Row) -> None:
        """Raise for a row without the columns of the first one."""
        assert self._fit is not None
        other = schemas.fitting(row, tuple(schemas.SHAPES))
        schema = self._fit[0]
        if other and not any(name in row for name in self._fit[1].required if name != "prompt"):
            raise DataError(
                f"{origin}: fits schema '{other[0]}' ({', '.join(other[1].required)}), but {self._place()} fits "
                f"'{schema}' ({', '.join(self._fit[1].required)}). Expected one schema per file: split the file."
            )
        raise DataError(f"{origin}: {schemas.missing(row, (schema,))}")

    def _place(self) -> str:
        return f"{self.source.unit} {self._first[0]}"

    def _same_form_as_first(self, origin: str, number: int, row: Row) -> None:
        assert self._fit is not None
        if not self._first[1]:
            self._first = (number, {name: is_messages(row[name]) for name in self._fit[1].required})
        for name, conversational in self._first[1].items():
            if is_messages(row[name]) != conversational:
                forms = ("messages", "text") if conversational else ("text", "messages")
                raise DataError(
                    f"{origin}: column '{name}' is {forms[1]}, but {forms[0]} in {self._place()}. "
                    "Expected one form per file: split the file."
                )

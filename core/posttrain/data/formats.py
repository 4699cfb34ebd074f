"""Readers of file formats: each yields ``(number, row)``, where the number counts lines or rows from 1."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from posttrain.errors import DataError, first_line

Row = dict[str, Any]
Numbered = Iterator[tuple[int, Row]]
_LONGEST_FIELD = 2**31 - 1
#: A whole number that Python refuses to parse, and its key if it has one.
_LONG_NUMBER = re.compile(r'(?:"([^"\\]*)"\s*:\s*)?-?\d{4300}')


def _lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 file with their numbers, without a byte-order mark."""
    with path.open("rb") as handle:
        for number, raw in enumerate(handle, 1):
            raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{name} line {number}: byte {error.start + 1} (0x{raw[error.start]:02x}) is not valid UTF-8. "
                    f"Convert the file, for example with: iconv -f latin1 -t utf-8 {name}"
                ) from None


def _unreadable_json(origin: str, error: Exception, text: str) -> DataError:
    """Build the error for JSON that Python does not parse: nesting or whole numbers beyond its limits."""
    if isinstance(error, RecursionError):
        return DataError(f"{origin}: invalid JSON (nested too deeply). Expected one object with a column per key.")
    found = _LONG_NUMBER.search(text)
    column = f"column '{found[1][:40]}' has " if found and found[1] is not None else ""
    return DataError(f"{origin}: {column}a whole number of more than 4300 digits, expected a finite number.")


def _invalid_json(origin: str, error: json.JSONDecodeError, column: bool = True) -> DataError:
    place = f"{origin}, column {error.colno}" if column else f"{origin} line {error.lineno}, column {error.colno}"
    return DataError(f"{place}: invalid JSON ({error.msg}). Expected one object with a column per key.")


def _object(value: Any, origin: str) -> Row:
    if not isinstance(value, dict):
        kind = {list: "a list", str: "text", type(None): "null"}.get(type(value), "a number")
        raise DataError(f"{origin}: is {kind}, expected an object with a column per key.")
    return value


def read_jsonl(path: Path, name: str) -> Numbered:
    """Yield one JSON object per line; blank lines are skipped but counted."""
    for number, line in _lines(path, name):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise _invalid_json(f"{name} line {number}", error) from None
        except (ValueError, RecursionError) as error:
            raise _unreadable_json(f"{name} line {number}", error, line) from None
        yield number, _object(value, f"{name} line {number}")


def read_json(path: Path, name: str) -> Numbered:
    """Yield objects of a list, of an object with the list under ``data``, or of JSON lines despite the suffix."""
    text = "".join(line for _, line in _lines(path, name))
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from read_jsonl(path, name)
            return
        raise _invalid_json(name, error, column=False) from None
    except (ValueError, RecursionError) as error:
        raise _unreadable_json(name, error, text) from None
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise DataError(f"{name}: holds neither a list of objects nor an object with the list under 'data'.")
    for number, row in enumerate(value, 1):
        yield number, _object(row, f"{name} row {number}")


def read_csv(path: Path, name: str) -> Numbered:
    """Yield comma-separated (``.tsv``: tab-separated) records under a header; the number is the record's first line."""
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(
        (line for _, line in _lines(path, name)), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True
    )
    header: list[str] | None = None
    try:
        while True:
            number = reader.line_num + 1
            record = next(reader, None)
            if record is None:
                return
            if not record:
                continue
            if header is None:
                header = record
                continue
            if len(record) != len(header):
                raise DataError(f"{name} line {number}: has {len(record)} fields, but the header has {len(header)}.")
            yield number, dict(zip(header, record, strict=True))
    except csv.Error as error:
        raise DataError(f"{name} line {reader.line_num}: is not valid CSV ({error}).") from None


def read_parquet(path: Path, name: str) -> Numbered:
    """Yield rows of a Parquet file, read batch by batch."""
    import pyarrow
    from pyarrow import parquet

    try:
        batches = parquet.ParquetFile(path).iter_batches(batch_size=1024)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{name}: is not a readable Parquet file ({_first_line(error)}).") from None


def read_arrow(path: Path, name: str) -> Numbered:
    """Yield rows of an Arrow file, in the stream format (which ``datasets`` writes) or the file format."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as memory:
            try:
                batches: Any = pyarrow.ipc.open_stream(memory)
            except pyarrow.ArrowInvalid:
                reader = pyarrow.ipc.open_file(memory)
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{name}: is not a readable Arrow file ({_first_line(error)}).") from None


def _first_line(error: BaseException) -> str:
    return first_line(error).rstrip(".")[:200]


#: Suffix -> reader, and the unit of its numbers.
READERS: dict[str, tuple[Callable[[Path, str], Numbered], str]] = {
    ".jsonl": (read_jsonl, "line"),
    ".ndjson": (read_jsonl, "line"),
    ".json": (read_json, "row"),
    ".csv": (read_csv, "line"),
    ".tsv": (read_csv, "line"),
    ".parquet": (read_parquet, "row"),
    ".arrow": (read_arrow, "row"),
}

"""Sources of rows: files, folders, Hub ids, generated tasks, lists and ``datasets`` objects."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from posttrain.data.formats import READERS, Numbered
from posttrain.data.plugins import plugin_rows
from posttrain.errors import DataError, SettingsError, first_line, short
from posttrain.example.example import DATA as _EXAMPLE
from posttrain.example.rows import example_rows
from posttrain.settings import DataSettings

_GYM = "reasoning-gym:"
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]+)?")


@dataclass
class Source:
    """One source of rows. ``read`` starts from the first row at each call."""

    name: str
    """Name that the user wrote; begins every message about a row."""
    read: Callable[[], Numbered]
    unit: str = "row"
    """Unit of the numbers: line or row."""
    weight: float = 1.0
    path: Path | None = None
    text_only: bool = False
    """CSV: all values are text."""
    filled: bool = False
    """Arrow: absent keys of a dictionary are nulls."""
    streams: bool = False
    """Rows can only be iterated."""
    schema: str | None = None
    """The only schema that the rows are made for."""

    def origin(self, number: int) -> str:
        """Return a row's place for messages: ``file.jsonl line 12``."""
        return f"{self.name} {self.unit} {number}"

    def digest(self, rows: Iterable[dict[str, Any]]) -> str:
        """Hash the content: the file's bytes, or the rows as JSON."""
        if self.path is not None:
            with self.path.open("rb") as handle:
                return hashlib.file_digest(handle, "sha256").hexdigest()
        total = hashlib.sha256()
        for row in rows:
            total.update(json.dumps(row, sort_keys=True, default=repr).encode() + b"\n")
        return total.hexdigest()


def open_sources(sources: Any, accepted: tuple[str, ...], settings: DataSettings, what: str) -> list[Source]:
    """Find every source, without reading rows. Raises DataError or SettingsError for one that cannot be found.

    ``sources`` and ``accepted`` are those of ``read_rows``; ``what`` ("data", "eval-data") names rows without a file.
    """
    if isinstance(sources, str | Path):
        sources = [sources]
    if _is_dataset(sources):
        return [_dataset(sources, settings, what)]
    if not isinstance(sources, list | tuple):
        raise DataError(
            f"{what} is a {type(sources).__name__}, expected file names, Hub ids, a list of rows or a datasets.Dataset."
        )
    if not sources:
        raise DataError(f"{what} is an empty list, expected at least one file or row.")
    if all(isinstance(source, str | Path) for source in sources):
        return list(chain.from_iterable(_named(str(source), accepted, settings, what) for source in sources))
    for number, row in enumerate(sources, 1):
        if not isinstance(row, dict):
            raise DataError(f"{what} row {number}: is {short(row)}, expected a dictionary with a column per key.")
    return [Source(what, lambda: iter(enumerate(sources, 1)))]


def split_weight(text: str) -> tuple[str, float]:
    """Split ``a.jsonl=2`` into ``("a.jsonl", 2.0)``; the default weight is 1. Options after '?' have their own '='."""
    if Path(text).exists():
        return text, 1.0
    head, separator, tail = text.rpartition("=")
    last_option = text.rpartition("?")[2].rpartition("&")[2]
    if not separator or ("?" in text and last_option.count("=") < 2):
        return text, 1.0
    try:
        weight = float(tail)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise SettingsError(f"data '{text}': weight '{tail}' is not a number above 0. Write for example: {head}=2")
    return head, weight


def _named(text: str, accepted: tuple[str, ...], settings: DataSettings, what: str) -> list[Source]:
    if _is_no_name(text):
        raise DataError(f"{short(text)}: no such file. Expected a file, a Hub id or reasoning-gym:TASK.")
    name, weight = split_weight(text)
    path = Path(name).expanduser()
    if name == _EXAMPLE:
        rows = partial(example_rows, accepted[0], held_out=what.startswith("eval-data"))
        found = [Source(name, lambda: iter(enumerate(rows(), 1)), schema=accepted[0])]
    elif name.startswith(_GYM):
        found = [Source(name, partial(_generated, name))]
    elif path.is_dir():
        found = _folder(path, name, settings)
    elif path.is_file():
        found = [_file(path, name)]
    elif (reader := plugin_rows(name)) is not None:
        found = [Source(name, reader)]
    elif path.suffix in READERS or path.is_absolute() or name.startswith((".", "~")) or not _HUB_ID.fullmatch(name):
        raise DataError(f"{name}: no such file.{_near(path)}")
    else:
        found = [Source(name, partial(_hub_rows, name, settings), filled=True)]
    if settings.exhausted != "leave" and len(found) > 1:
        raise SettingsError(
            f"data '{text}' is a folder of {len(found)} files, and with exhausted '{settings.exhausted}' a weight is "
            "the share of one file. Name the files: --data FILE=WEIGHT --data FILE=WEIGHT"
        )
    for source in found:
        source.weight = weight
    return found


def _is_no_name(text: str) -> bool:
    """Return whether no file can have that name: control characters, or a part of more than 255 bytes."""
    parts = [len(os.fsencode(part)) for part in text.encode("utf-8", "replace").decode().split("/")]
    return len(text) > 4096 or max(parts) > 255 or any(ord(letter) < 32 for letter in text)


def _near(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, 1)
    return (
        f" Did you mean '{path.with_name(close[0])}'?" if close else " Expected a file, a Hub id or reasoning-gym:TASK."
    )


def _file(path: Path, name: str) -> Source:
    if path.suffix not in READERS:
        raise DataError(f"{name}: the suffix '{path.suffix}' is unknown. Data files end in {', '.join(READERS)}.")
    reader, unit = READERS[path.suffix]
    return Source(
        name,
        partial(reader, path, name),
        unit,
        path=path,
        text_only=path.suffix in (".csv", ".tsv"),
        filled=path.suffix in (".parquet", ".arrow"),
    )


def _folder(path: Path, name: str, settings: DataSettings) -> list[Source]:
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        import datasets

        return [_dataset(datasets.load_from_disk(str(path)), settings, name)]
    files = sorted(entry for entry in path.iterdir() if entry.suffix in READERS)
    if not files:
        raise DataError(f"{name}: the folder holds no data file. Data files end in {', '.join(READERS)}.")
    return [_file(entry, str(Path(name) / entry.name)) for entry in files]


def _generated(name: str) -> Numbered:
    from posttrain.environments.reasoning_gym import rows

    return iter(enumerate(rows(name.removeprefix(_GYM)), 1))


def _hub_rows(name: str, settings: DataSettings) -> Numbered:
    import datasets

    repository, _, configuration = name.partition(":")
    try:
        data = datasets.load_dataset(
            repository, configuration or None, split=settings.split, streaming=settings.streaming
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = first_line(error).rstrip(".")
        raise DataError(
            f"{name}: neither a file here nor a dataset that can be loaded from the Hub ({reason}). "
            f"Check the name, the network and --split {settings.split}."
        ) from None
    return iter(enumerate((dict(row) for row in data), 1))


def _is_dataset(value: Any) -> bool:
    # An object of a library that was never imported cannot exist.
    datasets = sys.modules.get("datasets")
    if datasets is None:
        return False
    kinds = (datasets.Dataset, datasets.IterableDataset, datasets.DatasetDict, datasets.IterableDatasetDict)
    return isinstance(value, kinds)


def _dataset(data: Any, settings: DataSettings, name: str) -> Source:
    if isinstance(data, dict):
        if settings.split not in data:
            raise DataError(f"{name}: has no split '{settings.split}'. Choose with --split from: {', '.join(data)}.")
        data = data[settings.split]
    streams = not hasattr(data, "__len__")  # IterableDataset
    return Source(name, lambda: iter(enumerate((dict(row) for row in data), 1)), filled=True, streams=streams)

"""Training rows and sets of held-out rows: reading and comparison."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch

from posttrain.data import read_rows
from posttrain.data.duplicates import find_overlap
from posttrain.data.rows import Rows
from posttrain.errors import SettingsError
from posttrain.settings import DataSettings

#: ``math=a.jsonl``: a set's name before its source. What follows a weight's sign is a number.
_NAMED = re.compile(r"([A-Za-z][\w-]*)=(.+)")
#: Training rows among which a run searches near duplicates; check-data searches all.
LOOKED_AT = 50_000


def named_sets(given: Any) -> dict[str, Any]:
    """Return held-out sets by name, ``""`` for one without; a dictionary names them, as does ``NAME=FILE``.

    Raises SettingsError for a name that no metric can have.
    """
    if type(given) is dict:  # a DatasetDict has splits
        wrong = next((name for name in given if not re.fullmatch(r"[A-Za-z][\w-]*", str(name))), None)
        if wrong is not None or not given:
            what = "is empty" if not given else f"names a set {str(wrong)[:40]!r}"
            raise SettingsError(f"eval-data {what}. Expected names of letters, digits, '_' and '-'.")
        return given
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        return {"": given}
    sets: dict[str, Any] = {}
    for text in given:
        match = None if Path(text).exists() else _NAMED.fullmatch(text)
        named = match is not None and not _is_number(match[2])
        name, source = (match[1], match[2]) if named and match else ("", text)
        sets.setdefault(name, []).append(source)
    return sets


def as_named(given: Any) -> Any:
    """Return a dictionary of files in the command line's form, which run.json can hold; anything else unchanged."""
    if type(given) is not dict or not given or not all(isinstance(one, str | Path) for one in given.values()):
        return given
    return [f"{name}={one}" for name, one in named_sets(given).items()]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_sets(
    given: Any, held_out: Any, accepted: tuple[str, ...], settings: DataSettings
) -> tuple[Rows, dict[str, Rows]]:
    """Read training rows, and held-out rows by the name of their set; the set of ``eval_fraction`` has no name.

    Raises as ``read_rows``; SettingsError for a share that leaves no row on one side.
    """
    rows = read_rows(given, accepted, settings)
    if held_out is not None:
        whole = dataclasses.replace(settings, limit=None, streaming=False, exhausted="leave")
        named = named_sets(held_out)
        what = {name: f"eval-data {name}".strip() for name in named}
        return rows, {name: read_rows(one, accepted, whole, what=what[name]) for name, one in named.items()}
    if settings.eval_fraction:
        rows, part = _split(rows, settings)
        return rows, {"": part}
    return rows, {}


def _split(rows: Rows, settings: DataSettings) -> tuple[Rows, Rows]:
    count = round(len(rows) * settings.eval_fraction)
    if not 0 < count < len(rows):
        raise SettingsError(
            f"eval-fraction {settings.eval_fraction} of {len(rows)} rows is {count}. "
            "Expected at least one row on both sides."
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    return rows.subset(sorted(order[count:])), rows.subset(sorted(order[:count]))


def compare_sets(train: Rows, held_out: dict[str, Rows], most: int | None = None) -> tuple[dict[str, Any], list[str]]:
    """Return by set the held-out rows that are trained on too, and a line for each set that has some.

    ``most`` bounds the training rows among which near duplicates are searched. Streamed rows are not compared.
    """
    if train.streaming or not held_out:
        return {}, []
    found = {name: find_overlap(train, rows, most) for name, rows in held_out.items()}
    notes = [line for name, overlap in found.items() for line in overlap.notes(name)]
    if most is not None and len(train) > most:
        notes.append(
            f"near duplicates of held-out rows were looked for in the first {most} of {len(train)} training rows; all: "
            "posttrain check-data DATA --eval-data FILE"
        )
    return {name: overlap.record() for name, overlap in found.items()}, notes

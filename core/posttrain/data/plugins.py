"""Data sources of plugins: ``--data NAME:ARGUMENT``, entry point group ``posttrain.sources``.

The entry point is a function of the argument (text, empty without a colon) that returns or yields rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from posttrain.catalogue.entries import Entry, load_entry, one
from posttrain.data.formats import Numbered
from posttrain.errors import DataError, PluginError, short


def plugin_rows(text: str) -> Callable[[], Numbered] | None:
    """Return a reader of the rows of ``NAME:ARGUMENT``, None where no plugin provides NAME.

    The plugin is imported when the rows are read. Raises PluginError where two packages provide NAME.
    """
    name, _, argument = text.partition(":")
    entry = one("source", name)
    return partial(_rows, entry, argument) if entry else None


def _rows(entry: Entry, argument: str) -> Numbered:
    function = load_entry(entry)
    if not callable(function):
        raise PluginError(f"Source '{entry.name}' is '{entry.value}', expected MODULE:FUNCTION.")
    for number, row in enumerate(function(argument), 1):
        if not isinstance(row, dict):
            raise DataError(f"{entry.name} row {number}: is {short(row)}, expected a dictionary with a column per key.")
        yield number, row

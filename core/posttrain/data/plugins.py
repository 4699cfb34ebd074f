"""Sources of data that plugins provide: ``--data NAME:ARGUMENT``, entry point group ``posttrain.sources``.

The entry point is a function of the argument (text, empty without a colon) that returns or yields rows.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from functools import partial

from posttrain.data.formats import Numbered
from posttrain.errors import DataError, PluginError, short

GROUP = "posttrain.sources"


def plugin_rows(text: str) -> Callable[[], Numbered] | None:
    """Reader of the rows that ``NAME:ARGUMENT`` stands for, None where no plugin provides NAME.

    The plugin is imported when the rows are read. Raises PluginError where two packages provide NAME.
    """
    name, _, argument = text.partition(":")
    found = list(importlib.metadata.entry_points(group=GROUP, name=name))
    if len(found) > 1:
        raise PluginError(f"Source '{name}' is provided by {len(found)} packages. Uninstall all but one.")
    return partial(_rows, found[0], argument) if found else None


def _rows(entry: importlib.metadata.EntryPoint, argument: str) -> Numbered:
    from posttrain.methods import import_plugin

    function = getattr(import_plugin(entry.name, entry.module), entry.attr or entry.module, None)
    if not callable(function):
        raise PluginError(f"Source '{entry.name}' is '{entry.value}', expected MODULE:FUNCTION.")
    for number, row in enumerate(function(argument), 1):
        if not isinstance(row, dict):
            raise DataError(f"{entry.name} row {number}: is {short(row)}, expected a dictionary with a column per key.")
        yield number, row

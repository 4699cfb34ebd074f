"""Data: read rows, check them against a schema, and turn them into tokens.

``read_rows`` needs neither torch nor a tokenizer; ``prepare`` and ``stream`` need the tokenizer and no weights.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.data.check import check_data, examples_as_data, show
    from posttrain.data.rows import Rows, read_rows
    from posttrain.data.tokens.preparation import Prepared, prepare, stream

_HOMES = {
    "Rows": "rows",
    "read_rows": "rows",
    "Prepared": "tokens.preparation",
    "prepare": "tokens.preparation",
    "stream": "tokens.preparation",
    "check_data": "check",
    "show": "check",
    "examples_as_data": "check",
}

__all__ = ["Prepared", "Rows", "check_data", "examples_as_data", "prepare", "read_rows", "show", "stream"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

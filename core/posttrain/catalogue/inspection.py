"""Evident faults in an installed method's code, found by reading it: the module is parsed, never imported."""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from posttrain.catalogue.discovery import Installed
from posttrain.contract import hookspecs
from posttrain.errors import closest

_HOOKS = [name for name in vars(hookspecs) if name.startswith("posttrain_")]
#: Calls at module level that end the importing process.
_ENDINGS = ("exit", "quit", "sys.exit", "os._exit", "os.abort")


def problem_of(row: Installed) -> str | None:
    """Return why the method cannot be used, on one line: discovery's problem, else a fault in its code; None if usable.

    Found in code: a syntax error, an import of an absent module, an unknown hook, and a module that ends its importer.
    For listings; loading a method finds these, and everything else, by itself.
    """
    if row.problem or row.card is None or row.card.path is None:
        return row.problem
    file = row.card.path.parent / "__init__.py"
    try:
        return _of_file(file)
    except OSError as error:
        return f"{file}: cannot be read ({error.strerror})."
    except SyntaxError as error:
        return f"{file} line {error.lineno}: {error.msg}."
    except ValueError as error:  # null bytes
        return f"{file}: {error}."
    except (RecursionError, MemoryError):
        return f"{file}: is nested too deep to be read."


def _of_file(file: Path) -> str | None:
    found = (_of_statement(statement) for statement in ast.parse(file.read_bytes()).body)
    return next((f"{file.name} line {line}: {text}" for line, text in filter(None, found)), None)


def _of_statement(statement: ast.stmt) -> tuple[int, str] | None:
    """Return line and problem of one top-level statement of the module."""
    text = None
    if isinstance(statement, ast.Import):
        text = _first(_missing(alias.name) for alias in statement.names)
    elif isinstance(statement, ast.ImportFrom) and statement.level == 0 and statement.module:
        text = _missing(statement.module)
    elif isinstance(statement, ast.FunctionDef) and any("hookimpl" in ast.unparse(d) for d in statement.decorator_list):
        text = _unknown(statement.name)
    elif isinstance(statement, ast.Raise) or (isinstance(statement, ast.Expr) and _ends(statement.value)):
        text = f"it ends whatever imports it: {ast.unparse(statement).splitlines()[0][:80]}"
    return (statement.lineno, text) if text else None


def _first(texts: Iterable[str | None]) -> str | None:
    return next(filter(None, texts), None)


@functools.cache
def _missing(module: str) -> str | None:
    top = module.partition(".")[0]  # a dotted name would import its parent
    if top in sys.modules or importlib.util.find_spec(top) is not None:
        return None
    return f"it needs the module '{top}', which is not installed."


def _unknown(name: str) -> str | None:
    if name in _HOOKS:
        return None
    hint = closest(name, _HOOKS)
    return f"it implements unknown hook '{name}'.{hint}"


def _ends(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and ast.unparse(value.func) in _ENDINGS

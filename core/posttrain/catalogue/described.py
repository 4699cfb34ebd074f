"""Summaries of entry points from their source files; nothing is imported."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path

from posttrain.catalogue.entries import Entry


@dataclass
class Described:
    """Summary of a class or function from its source."""

    summary: str = ""
    """First line of its docstring."""
    tools: list[str] = field(default_factory=list)
    """Methods marked with ``tool``."""
    problem: str | None = None
    """Why it cannot be read, in one line."""


def described(entry: Entry) -> Described:
    """Read the class or function that ``entry`` names."""
    if entry.problem:
        return Described(problem=entry.problem)
    file = _file(entry.module)
    if file is None:
        return Described(problem=f"there is no module '{entry.module}'.")
    try:
        body: list[ast.stmt] = ast.parse(file.read_bytes()).body
    except OSError as error:
        return Described(problem=f"{file}: cannot be read ({error.strerror}).")
    except (SyntaxError, ValueError) as error:
        return Described(problem=f"{file}: {' '.join(str(error).split())}.")
    found = next((one for one in body if getattr(one, "name", None) == entry.attribute), None)
    if not isinstance(found, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return Described()  # made by a call, or imported from elsewhere
    methods = [one for one in found.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    tools = [one.name for one in methods if any(_is_tool(mark) for mark in one.decorator_list)]
    return Described((ast.get_docstring(found) or "").partition("\n")[0], tools)


def _is_tool(mark: ast.expr) -> bool:
    return ast.unparse(mark).rpartition(".")[2] == "tool"


def _file(module: str) -> Path | None:
    """Find the source of ``module``; finding a dotted name the usual way would import its parents."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:
        return None
    name = top
    for part in rest:
        name = f"{name}.{part}"
        places = spec.submodule_search_locations if spec is not None else None
        spec = PathFinder.find_spec(name, list(places)) if places else None
    return Path(spec.origin) if spec is not None and spec.origin and spec.has_location else None

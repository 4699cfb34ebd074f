"""Tests of a row: pairs of input and output, assertions, or a file for pytest."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
from dataclasses import dataclass
from typing import Any, Literal

from posttrain.errors import DataError, DependencyError, short

_FORMS = (
    "Expected a list of {'input': TEXT, 'output': TEXT}, a list of assert statements or one text of them, or a text "
    "with functions test_... for pytest."
)
_INPUT, _OUTPUT = ("input", "stdin"), ("output", "stdout", "expected_output")


@dataclass(frozen=True)
class ProgramTests:
    """Tests that a program must pass."""

    kind: Literal["pairs", "asserts", "pytest"]
    pairs: tuple[tuple[str, str], ...] = ()
    source: str = ""
    entry_point: str = ""
    """Function that a text with ``def check(candidate)`` tests."""

    @classmethod
    def of(cls, value: Any, entry_point: str | None = None) -> ProgramTests:
        """Parse the tests of a row. Raises DataError for another form, DependencyError where pytest is missing."""
        if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
            with contextlib.suppress(ValueError, RecursionError):  # then it is a program, or nothing
                value = json.loads(value)
        if isinstance(value, dict) and any(isinstance(one, list) for one in value.values()):
            value = _turned(value)
        if isinstance(value, dict):
            value = [value]
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            return cls("pairs", tuple((_text(one, _INPUT, ""), _text(one, _OUTPUT, None)) for one in value))
        if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
            value = "\n".join(value)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"tests are {short(value)}. {_FORMS}")
        return cls._of_source(value, str(entry_point or ""))

    @classmethod
    def _of_source(cls, source: str, entry_point: str) -> ProgramTests:
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise DataError(f"tests are {short(source)}, which is no Python: {error!s:.200}. {_FORMS}") from None
        names = [one.name for one in ast.walk(tree) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
        if any(name.startswith("test") for name in names):
            if importlib.util.find_spec("pytest") is None:
                raise DependencyError(
                    "The tests are for pytest, which is not here. Install it with: pip install 'posttrain[sandbox]'"
                )
            return cls("pytest", source=source, entry_point=entry_point)
        calls = (isinstance(one, ast.Expr) and isinstance(one.value, ast.Call) for one in tree.body)
        checks = bool(entry_point) and "check" in names
        if not (checks or any(calls) or any(isinstance(one, ast.Assert) for one in tree.body)):
            raise DataError(f"tests are {short(source)}, in which nothing is asserted. {_FORMS}")
        return cls("asserts", source=source, entry_point=entry_point)


def _turned(value: dict[str, Any]) -> list[dict[str, Any]]:
    """Convert columns of pairs, ``{"inputs": [...], "outputs": [...]}`` in several datasets, to pairs."""
    columns = {name.removesuffix("s"): one for name, one in value.items() if isinstance(one, list)}
    if len({len(one) for one in columns.values()}) != 1:
        raise DataError(f"tests are {short(value)}, whose lists differ in length. {_FORMS}")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _text(pair: dict[str, Any], names: tuple[str, ...], default: str | None) -> str:
    found = next((pair[name] for name in names if name in pair), default)
    if isinstance(found, list) and all(isinstance(line, str) for line in found):
        return "\n".join(found)
    if not isinstance(found, str):
        raise DataError(f"A test is {short(pair)}, with {short(found)} as its '{names[0]}'. {_FORMS}")
    return found

"""Options of a method or of every run, read from source without importing it, and cast with checks."""

from __future__ import annotations

import ast
import math
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from posttrain.errors import MethodError, SettingsError, short

_NAMES = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "list": list,
    "dict": dict,
    "tuple": tuple,
    "None": None,
}
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
#: A comma between pairs, followed by NAME=; one inside a value (a pattern's {1,3}) is not.
_PAIR_COMMA = re.compile(r",(?=\s*[\w.-]+=)")
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Option:
    """One option, a field of a dataclass: name, type, default and help."""

    name: str
    kind: Any
    default: Any
    help: str
    section: str = ""
    """Comment above the field's part of the class."""

    @property
    def flag(self) -> str:
        """Flag on the command line."""
        return "--" + self.name.replace("_", "-")


def read_options(source: Path, class_name: str = "Config") -> list[Option]:
    """Read the fields of ``class_name`` from a Python file, in order, without importing it; empty if it is missing."""
    text, tree = _parse(source)
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name]
    if not found:
        return []
    body = found[0].body
    lines = text.splitlines()
    options, section, seen = [], "", found[0].lineno
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            headings = [line.strip() for line in lines[seen : node.lineno - 1] if line.strip().startswith("# ")]
            section = headings[-1][2:] if headings else section
            default, text = _default(node.value), _string(following)
            options.append(Option(node.target.id, _kind(node.annotation), default, text, section))
        seen = node.end_lineno or node.lineno
    return options


def docstring(source: Path) -> str:
    """Return the docstring of a Python file without importing it."""
    return ast.get_docstring(_parse(source)[1]) or ""


def _parse(source: Path) -> tuple[str, ast.Module]:
    try:
        text = source.read_text(encoding="utf-8")
        return text, ast.parse(text)
    except (OSError, SyntaxError, UnicodeDecodeError, ValueError) as error:
        raise MethodError(f"{source}: cannot be read: {' '.join(str(error).split())}") from None
    except (RecursionError, MemoryError):
        raise MethodError(f"{source}: cannot be read: it is nested too deep.") from None


def describe(kind: Any) -> str:
    """Describe a type in words, for help and errors: "a number or none", "one of token, sequence"."""
    if kind is type(None) or kind is None:
        return "none"
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(describe(argument) for argument in arguments)
    if origin in (list, tuple):
        return "a list, each " + describe(arguments[0])
    if origin is dict:
        return "NAME=VALUE pairs"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def cast(key: str, value: Any, kind: Any) -> Any:
    """Cast ``value`` (from a flag, a file or Python) to ``kind``. Raises SettingsError naming key, value, expected."""
    try:
        found = _cast(value, kind)
    except (ValueError, TypeError, OverflowError):
        raise SettingsError(f"Option '{key}' is {short(value)}, expected {describe(kind)}.") from None
    if isinstance(found, float) and math.isnan(found):
        raise SettingsError(f"Option '{key}' is {short(value)}, expected a finite number.")
    return found


def _cast(value: Any, kind: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if kind is type(None) or kind is None:
        return _none(value)
    if origin in (types.UnionType, typing.Union):
        return _first(value, arguments)
    if origin is Literal:
        return _choice(value, arguments)
    if origin in (list, tuple):
        items = _items(value, arguments[0]) if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise TypeError
        return origin(_cast(item, arguments[0]) for item in items)
    if origin is dict:
        return {str(k): _cast(v, arguments[1]) for k, v in _pairs(value).items()}
    if kind in _SCALARS:
        return _SCALARS[kind](value)
    if isinstance(kind, type) and isinstance(value, kind):
        return value
    raise TypeError


def _first(value: Any, kinds: tuple[Any, ...]) -> Any:
    # None first, so that the text "none" clears an option that could also be text; then in the order written
    for kind in sorted(kinds, key=lambda kind: kind is not type(None)):
        try:
            return _cast(value, kind)
        except (ValueError, TypeError, OverflowError):
            continue
    raise ValueError


def _none(value: Any) -> None:
    if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
        return None
    raise ValueError


def _choice(value: Any, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        same_type = type(choice) is type(value)
        if (same_type and choice == value) or (isinstance(value, str) and str(choice) == value):
            return choice
    raise ValueError


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    number = int(value.replace("_", "")) if isinstance(value, str) else int(value)
    if isinstance(value, float) and number != value:
        raise ValueError
    return number


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    return float(value)  # text too: YAML reads 1e-5 as text


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = value.lower() if isinstance(value, str) else ""
    if word not in (*_TRUE, *_FALSE):
        raise ValueError
    return word in _TRUE


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


_SCALARS: dict[Any, Any] = {int: _integer, float: _number, bool: _truth, str: _text}


def _items(text: str, kind: Any) -> list[str]:
    """Split a list at commas, except a list of texts, whose text is one item."""
    return [text] if kind is str else text.split(",")


def _pairs(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    pairs: dict[str, Any] = {}
    for text in [value] if isinstance(value, str) else value:
        for item in _PAIR_COMMA.split(text):
            name, equals, content = item.partition("=")
            if not equals or not name.strip():
                raise ValueError
            pairs[name.strip()] = content
    return pairs


def _kind(node: ast.expr) -> Any:
    """Return the type of an annotation, of the few types that an option may have; anything else is Any."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _kind(ast.parse(node.value, mode="eval").body)
    if isinstance(node, ast.Constant) and node.value is None:
        return type(None)
    if isinstance(node, ast.Name):
        return _NAMES.get(node.id, Any)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return typing.Union[_kind(node.left), _kind(node.right)]  # noqa: UP007  the members are known only here
    if isinstance(node, ast.Subscript):
        return _generic(ast.unparse(node.value).rpartition(".")[2], node.slice)
    return Any


def _generic(name: str, inner: ast.expr) -> Any:
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if name == "Literal":
        return Literal[tuple(ast.literal_eval(part) for part in parts)]
    if name == "Optional":
        return typing.Union[_kind(parts[0]), None]  # noqa: UP007  the type is known only here
    if name in ("list", "dict", "tuple"):
        kinds = tuple(... if ast.unparse(part) == "..." else _kind(part) for part in parts)
        return types.GenericAlias({"list": list, "dict": dict, "tuple": tuple}[name], kinds)
    return Any


def _default(node: ast.expr | None) -> Any:
    if node is None:
        return None
    try:
        return ast.literal_eval(node)
    except ValueError:
        pass  # an expression, shown as written
    if isinstance(node, ast.Call):
        for keyword in node.keywords:
            if keyword.arg == "default":
                return _default(keyword.value)
            if keyword.arg == "default_factory":
                return {"list": [], "dict": {}, "tuple": ()}.get(ast.unparse(keyword.value), ast.unparse(keyword.value))
    return ast.unparse(node)


def _string(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""

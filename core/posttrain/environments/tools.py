"""Functions that a model may call: their schemas, and calls whose errors are answers to the model."""

from __future__ import annotations

import asyncio
import inspect
import json
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from posttrain.errors import SettingsError

#: Longest answer of a tool, in characters: a tool that prints a whole file must not fill the model's context.
LONGEST = 8000
_MARK = "_posttrain_tool"


@dataclass(frozen=True)
class Tool:
    """A function with the name under which the model calls it."""

    name: str
    function: Callable[..., Any]

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Tool:
        """Make a tool of ``function``. Raises SettingsError for one without types or description."""
        made = cls(str(getattr(function, "__name__", type(function).__name__)), function)
        schema_of(made)
        return made


def tool(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a method of an environment as callable by the model."""
    setattr(function, _MARK, True)
    return function


def tools_in(environment: Any) -> dict[str, Tool]:
    """Return the marked methods of an environment, by name."""
    names = [name for name in dir(type(environment)) if getattr(getattr(type(environment), name), _MARK, False)]
    return {name: Tool(name, getattr(environment, name)) for name in names}


def schema_of(one: Tool) -> dict[str, Any]:
    """Return the JSON schema of a tool, from its types and docstring by transformers. Raises SettingsError."""
    from transformers.utils import get_json_schema

    given = getattr(one.function, "schema", None)
    if isinstance(given, dict):
        return given
    try:
        return get_json_schema(one.function)
    except Exception as error:
        detail = " ".join(str(error).split())
        raise SettingsError(
            f"Tool '{one.name}' cannot be described to a model: {detail} Expected types for all parameters and a "
            "docstring with a line 'NAME: what it is' under 'Args:' for each."
        ) from None


def run_calls(calls: list[dict[str, Any]], tools: dict[str, Tool]) -> list[dict[str, Any]]:
    """Run the calls of one turn in order; return one message with the role "tool" for each, errors included."""
    return [_message(call, _result(call, tools)) for call in calls]


def _message(call: dict[str, Any], content: Any) -> dict[str, Any]:
    name = call.get("function", {}).get("name", "")
    found = {"role": "tool", "name": name, "content": content}
    return found | ({"tool_call_id": call["id"]} if "id" in call else {})


def _result(call: dict[str, Any], tools: dict[str, Tool]) -> Any:
    if "error" in call:
        return f"Error: {call['error']}"
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    if name not in tools:
        return f"Error: there is no tool '{name}'. Tools: {', '.join(tools) or 'none'}."
    function = tools[name].function
    if problem := _mismatch(function, arguments):
        return f"Error: {name}: {problem}"
    try:
        found = function(**arguments)
        if inspect.isawaitable(found):
            found = asyncio.run(_awaited(found))
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # SystemExit too: a tool must not end the run
        return f"Error: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return _content(found)


async def _awaited(found: Any) -> Any:
    return await found


def _mismatch(function: Callable[..., Any], arguments: Any) -> str:
    """Return what is wrong with the arguments, empty for nothing; numbers that a model wrote as text are converted."""
    if not isinstance(arguments, dict):
        return f"arguments are {json.dumps(arguments)[:80]}, expected an object."
    if getattr(function, "schema", None) is not None:  # the tool has its own schema and checks its arguments
        return ""
    parameters = inspect.signature(function).parameters
    unknown = [name for name in arguments if name not in parameters]
    if unknown and not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return f"it has no argument '{unknown[0]}'. Arguments: {', '.join(parameters) or 'none'}."
    open_ended = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    needed = [name for name, one in parameters.items() if one.default is one.empty and one.kind not in open_ended]
    missing = [name for name in needed if name not in arguments]
    if missing:
        return f"the argument '{missing[0]}' is missing."
    kinds = typing.get_type_hints(function)
    for name, value in arguments.items():
        wanted = kinds.get(name)
        if wanted in (int, float) and (isinstance(value, bool) or not isinstance(value, int | float)):
            try:
                arguments[name] = wanted(value)
            except (TypeError, ValueError):
                return f"'{name}' is {json.dumps(value)[:80]}, expected a number."
        elif wanted is str and not isinstance(value, str):
            arguments[name] = json.dumps(value)
    return ""


def _content(value: Any) -> Any:
    """Return a tool's result as a message's content: parts for a PIL image or for parts of which one is an image."""
    if type(value).__module__.startswith("PIL."):
        return [{"type": "image", "image": value}]
    parts = isinstance(value, list) and all(isinstance(one, dict) and "type" in one for one in value)
    if parts and any(one["type"] in ("image", "image_url") for one in value):
        return value
    return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        text = value
    else:
        try:
            text = json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError):
            text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text)} characters in all)"

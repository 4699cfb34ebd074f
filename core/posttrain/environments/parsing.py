"""Parsers of tool calls in a model's text, by the form of its family.

The form is the one that the chat template itself writes: a call with a known name is rendered and matched. Calls that
cannot be read are kept with an error, which the model gets.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from typing import Any

Call = dict[str, Any]
#: Text without its calls, and the calls.
Parsed = tuple[str, list[Call]]

_XML = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)
_GLM = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_DEEPSEEK = re.compile(
    r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?([^\n<]+?)(?:\n```json\n|<｜tool▁sep｜>)(.*?)"
    r"(?:\n```)?<｜tool▁call▁end｜>",
    re.DOTALL,
)
_HARMONY = re.compile(r"to=functions\.([\w.-]+).*?<\|message\|>(.*?)(?:<\|call\|>|<\|end\|>|\Z)", re.DOTALL)
_KIMI = re.compile(
    r"<\|tool_call_begin\|>\s*(?:functions\.)?([\w.-]+?)(?::\d+)?\s*<\|tool_call_argument_begin\|>(.*?)<\|tool_call_end\|>",
    re.DOTALL,
)
_GEMMA = re.compile(r"<\|tool_call>call:([\w.-]+)\{(.*?)\}<tool_call\|>", re.DOTALL)
_GEMMA_PAIR = re.compile(r'([\w.-]+):(<\|"\|>.*?<\|"\|>|\[.*?\]|\{.*?\}|[^,]*)(?:,|\Z)', re.DOTALL)
_INVOKE = re.compile(r'<(?:\w+:)?invoke name="([^"]+)">(.*?)</(?:\w+:)?invoke>', re.DOTALL)
_INVOKE_PAIR = re.compile(r'<(?:\w+:)?parameter name="([^"]+)"[^>]*>(.*?)</(?:\w+:)?parameter>', re.DOTALL)
_CHANNEL = re.compile(r"<\|channel\|>(\w+)[^<]*<\|message\|>(.*?)(?=<\|end\|>|<\|start\|>|<\|return\|>|\Z)", re.DOTALL)
_LFM = re.compile(r"<\|tool_call_start\|>(.*?)(?:<\|tool_call_end\|>|\Z)", re.DOTALL)
_PYTHONIC = re.compile(r"\[\s*\w+\(.*\)\s*\]", re.DOTALL)


def call(name: str, arguments: Any) -> Call:
    """Build a call in chat templates' form."""
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def broken(text: str, why: str) -> Call:
    """Build a call that cannot be read."""
    return call("", {}) | {"error": f"the tool call {text[:80]!r} cannot be read: {why}."}


def _of_json(text: str) -> list[Call]:
    """Parse calls from JSON: an object, or a list of them, with name and arguments (or parameters)."""
    try:
        value, _ = json.JSONDecoder(strict=False).raw_decode(text.strip())
    except json.JSONDecodeError as error:
        return [broken(text, f"it is no valid JSON ({error.msg})")]
    found = []
    for one in value if isinstance(value, list) else [value]:
        inner = one.get("function", one) if isinstance(one, dict) else one
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            found.append(broken(text, 'expected {"name": ..., "arguments": {...}}'))
            continue
        found.append(_named(inner["name"], inner.get("arguments", inner.get("parameters", {})), text))
    return found


def _named(name: str, arguments: Any, text: str) -> Call:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments, strict=False) if arguments.strip() else {}
        except json.JSONDecodeError as error:
            return broken(text, f"its arguments are no valid JSON ({error.msg})")
    return call(name.strip(), arguments) if isinstance(arguments, dict) else broken(text, "its arguments are no object")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _tags(text: str) -> Parsed:
    """Parse ``<tool_call>`` around JSON, around ``<function=...>``, or around GLM's keys and values."""
    calls = []
    for inner in _XML.findall(text):
        if function := _FUNCTION.search(inner):
            calls.append(call(function[1], {name: _value(value) for name, value in _PARAMETER.findall(function[2])}))
        elif "<arg_key>" in inner:
            name = inner.partition("<arg_key>")[0].strip()
            calls.append(call(name, {key.strip(): _value(value.strip()) for key, value in _GLM.findall(inner)}))
        elif inner.startswith(("{", "[")) or not re.fullmatch(r"[\w.-]+", inner):
            calls += _of_json(inner)
        else:
            calls.append(call(inner, {}))
    return _XML.sub("", text).strip(), calls


def _functions(text: str) -> Parsed:
    calls = [
        call(name, {key: _value(value) for key, value in _PARAMETER.findall(inner)})
        for name, inner in _FUNCTION.findall(text)
    ]
    return _FUNCTION.sub("", text).strip(), calls


def _mistral(text: str) -> Parsed:
    """Parse ``[TOOL_CALLS]`` before a list, or before NAME[ARGS]{...} for each call."""
    before, *parts = text.split("[TOOL_CALLS]")
    calls = []
    for part in parts:
        name, found, arguments = part.partition("[ARGS]")
        if found:
            calls.append(_named(re.sub(r"\[CALL_ID\].*", "", name), arguments.strip(), part))
        elif match := re.match(r"\s*([\w.-]+)\s*(\{.*)", part, re.DOTALL):
            calls.append(_named(match[1], match[2].strip(), part))
        else:
            calls += _of_json(part)
    return before.strip(), calls


def _llama(text: str) -> Parsed:
    """Parse a message that is nothing but JSON, or Python's list of calls."""
    bare = text.replace("<|python_tag|>", "").strip()
    if _PYTHONIC.fullmatch(bare):
        return "", _pythonic(bare)
    if bare.startswith("{") and '"name"' in bare:
        return "", [one for part in bare.split("; ") for one in _of_json(part)] if "}; {" in bare else _of_json(bare)
    return text.strip(), []


def _pythonic(text: str) -> list[Call]:
    try:
        tree = ast.parse(text, mode="eval").body
        assert isinstance(tree, ast.List)
        return [
            call(ast.unparse(one.func), {word.arg: ast.literal_eval(word.value) for word in one.keywords if word.arg})
            if isinstance(one, ast.Call) and not one.args
            else broken(text, "expected [name(argument=value)]")
            for one in tree.elts
        ]
    except (SyntaxError, ValueError, AssertionError, RecursionError, MemoryError):
        return [broken(text, "expected [name(argument=value)]")]


def _harmony(text: str) -> Parsed:
    """Parse channels: a message to a function is a call, the last other message is the answer."""
    _, calls = _matches(_HARMONY, "<|start|>")(text)
    said = [words for channel, words in _CHANNEL.findall(text) if channel.strip() == "final"]
    return (said[-1].strip() if said else "" if calls or "<|channel|>" in text else text.strip()), calls


def _lfm(text: str) -> Parsed:
    """Parse Python's list of calls between two tokens."""
    return _LFM.sub("", text).strip(), [one for inner in _LFM.findall(text) for one in _pythonic(inner.strip())]


def _gemma(text: str) -> Parsed:
    """Parse ``call:NAME{KEY:VALUE}``, with texts between quotes that are one token."""
    calls = []
    for name, inner in _GEMMA.findall(text):
        pairs = {key: _value(value.replace('<|"|>', '"')) for key, value in _GEMMA_PAIR.findall(inner)}
        calls.append(call(name, pairs))
    return _GEMMA.sub("", text).strip(), calls


def _invokes(text: str) -> Parsed:
    """Parse ``<invoke name="NAME">`` with a ``<parameter name="KEY">`` an argument, with or without a namespace."""
    calls = [
        call(name, {key: _value(value) for key, value in _INVOKE_PAIR.findall(inner)})
        for name, inner in _INVOKE.findall(text)
    ]
    return text.partition("<")[0].strip(), calls


def _matches(pattern: re.Pattern[str], begin: str) -> Callable[[str], Parsed]:
    def parse(text: str) -> Parsed:
        calls = [_named(name, arguments.strip(), arguments) for name, arguments in pattern.findall(text)]
        return text.partition(begin)[0].strip(), calls

    return parse


#: Mark of a rendered call -> parser of such calls, the most specific first.
FORMS: tuple[tuple[str, Callable[[str], Parsed]], ...] = (
    ("<｜tool▁call▁begin｜>", _matches(_DEEPSEEK, "<｜tool▁call")),
    ("<|tool_call_begin|>", _matches(_KIMI, "<|tool_call")),
    ("to=functions.", _harmony),
    ("<|tool_call_start|>", _lfm),
    ("<|tool_call>call:", _gemma),
    ("invoke name=", _invokes),
    ("[TOOL_CALLS]", _mistral),
    ("<tool_call>", _tags),
    ("<function=", _functions),
    ("<|python_tag|>", _llama),
    ('{"name"', _llama),
    ("[known_name(", _llama),
)
#: Form for templates that write no calls: the one that most small models have seen.
DEFAULT = ("<tool_call>", _tags)


def parser_of(rendered: str) -> Callable[[str], Parsed]:
    """Return the parser for calls in the form of ``rendered``, a call of the tool ``known_name``."""
    return next((parse for mark, parse in FORMS if mark in rendered), DEFAULT[1])


def parse(text: str, form: Callable[[str], Parsed]) -> dict[str, Any]:
    """Parse ``text`` as a message of the assistant: content, reasoning, and calls with ids."""
    reasoning, text = split_reasoning(text)
    content, calls = form(text)
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        # Nine letters and digits: one family's template refuses other ids.
        message["tool_calls"] = [one | {"id": f"call{number:05d}"} for number, one in enumerate(calls)]
    return message


def split_reasoning(text: str) -> tuple[str, str]:
    """Split text into its reasoning, inside ``<think>`` at the start or in its channel, and the rest."""
    if thought := [words for channel, words in _CHANNEL.findall(text) if channel == "analysis"]:
        return "\n".join(map(str.strip, thought)), text
    head, found, rest = text.partition("</think>")
    return (head.replace("<think>", "", 1).strip(), rest.strip()) if found else ("", text)

"""Forms of messages that a chat template accepts, found by rendering small conversations with it.

Rows have arguments of calls as objects or as JSON text, content as text or as parts, reasoning under several names or
inside ``<think>`` tags. A template accepts one form and mangles the others, mostly without a warning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from posttrain.contract.messages import message_text
from posttrain.errors import DataError

Message = dict[str, Any]
#: Messages to text; raises DataError where the template refuses them.
Render = Callable[[list[Message]], str]
#: Keys of an answer's reasoning in data sets and templates.
REASONING = ("reasoning_content", "reasoning", "thinking")
_THOUGHT = re.compile(r"\s*(?:<think>)?(.*?)</think>\s*", re.DOTALL)
#: Words that no template writes.
_ASKED, _SAID, _THOUGHT_OF = "qzaskedqz", "qzsaidqz", "qzthoughtqz"
_NAME, _KEY, _VALUE = "qznameqz", "qzkeyqz", "qzvalueqz"


@dataclass(frozen=True)
class Forms:
    """Forms that one template accepts."""

    parts: bool
    """Content is a list of parts; plain text is lost."""
    argument_text: bool
    """Arguments of calls are JSON text; objects would be written in Python's notation, or refused."""
    reasoning: str | None
    """Key of the reasoning in an answer; None without one."""
    call_reasoning: str | None
    """Key of the reasoning beside a call; None without one."""

    def adapted(self, messages: list[Message]) -> list[Message]:
        """Convert the messages to these forms, without changing the originals."""
        return [self._adapted(message) for message in messages]

    def _adapted(self, message: Message) -> Message:
        made = {name: value for name, value in message.items() if name != "tool_calls" or value}
        if made.get("tool_calls"):
            made["tool_calls"] = [self._call(call) for call in made["tool_calls"]]
            if made.get("content") is None:
                made["content"] = ""
        key = self.call_reasoning if made.get("tool_calls") else self.reasoning
        if made["role"] == "assistant" and key:
            made = _with_reasoning(made, key)
        content = made.get("content")
        if self.parts and isinstance(content, str):
            made["content"] = [{"type": "text", "text": content}]
        elif not self.parts and _all_text(content):
            made["content"] = message_text(made)
        return made

    def _call(self, call: Message) -> Message:
        inner = call.get("function")
        if isinstance(inner, dict):
            return {**call, "function": {**inner, **self._arguments(inner)}}
        return {**call, **self._arguments(call)}

    def _arguments(self, function: Message) -> Message:
        if "arguments" not in function:
            return {}
        arguments = function["arguments"]
        if self.argument_text:
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            return {"arguments": text}
        return {"arguments": _object(arguments)}


def _with_reasoning(message: Message, key: str) -> Message:
    """Move reasoning to ``key`` from another key or from inside the content."""
    given = reasoning_of(message)
    if given is None:
        content = message_text(message)
        found = _THOUGHT.match(content)
        if found is None or not found[1].strip():
            return message
        return {**message, key: found[1].strip(), "content": content[found.end() :]}
    rest = {name: value for name, value in message.items() if name != given[0]}
    return {**rest, key: given[1]}


def reasoning_of(message: Message) -> tuple[str, str] | None:
    """Return key and text of a message's reasoning; None without one."""
    return next(((key, text) for key in REASONING if isinstance(text := message.get(key), str) and text), None)


def find_forms(render: Render) -> Forms:
    """Find the forms that the template behind ``render`` accepts; by default text, objects, and no reasoning."""
    said = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _SAID}]
    listed = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in said]
    parts = not _has(render, said, _ASKED, _SAID) and _has(render, listed, _ASKED, _SAID)
    asked, answer = listed if parts else said
    as_text = _wants_text(render, asked, answer)
    arguments: Any = json.dumps({_KEY: _VALUE}) if as_text else {_KEY: _VALUE}
    in_answers = (key for key in REASONING if _has(render, [asked, {**answer, key: _THOUGHT_OF}], _THOUGHT_OF))
    in_calls = (key for key in REASONING if _reasons(render, _called(asked, answer, arguments, {key: _THOUGHT_OF})))
    return Forms(parts, as_text, next(in_answers, None), next(in_calls, None))


def _reasons(render: Render, called: list[list[Message]]) -> bool:
    return any(_has(render, messages, _THOUGHT_OF) for messages in called)


def _wants_text(render: Render, asked: Message, answer: Message) -> bool:
    """Return whether arguments as text render unquoted, while arguments as an object render as no call."""
    text = json.dumps({_KEY: _VALUE})
    for called in _called(asked, answer, {_KEY: _VALUE}, {}):
        written = _rendered(render, called)
        if written is not None and _VALUE in written:
            return str({_KEY: _VALUE}) in written
    return any(text in (_rendered(render, called) or "") for called in _called(asked, answer, text, {}))


def _called(asked: Message, answer: Message, arguments: Any, more: Message) -> list[list[Message]]:
    """Return conversations with one call, of the kinds that templates require."""
    call = {"id": "a1b2c3d4e", "type": "function", "function": {"name": _NAME, "arguments": arguments}}
    calling = {"role": "assistant", "content": [] if isinstance(asked["content"], list) else "", "tool_calls": [call]}
    result = {"role": "tool", "content": _ASKED, "tool_call_id": "a1b2c3d4e", "name": _NAME}
    start = [asked, {**calling, **more}]
    return [[*start, result, answer], [*start, result], start]


def _rendered(render: Render, messages: list[Message]) -> str | None:
    try:
        return render(messages)
    except DataError:
        return None


def _has(render: Render, messages: list[Message], *words: str) -> bool:
    written = _rendered(render, messages)
    return written is not None and all(word in written for word in words)


def _all_text(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content)


def _object(arguments: Any) -> Any:
    """Parse arguments that are the JSON text of an object; return all others unchanged."""
    if not isinstance(arguments, str):
        return arguments
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments

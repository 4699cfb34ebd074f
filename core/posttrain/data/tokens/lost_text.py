"""Losses of a chat template: answers that it leaves out or rewrites, whose rows would teach something else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from posttrain.contract.messages import message_text
from posttrain.data.tokens.forms import Message, reasoning_of
from posttrain.errors import short

_TEMPLATE = "with --chat-template FILE"
#: Kind of loss -> advice.
ADVICE = {
    "text": (
        f"Give a template that writes the text as it is, {_TEMPLATE}, or remove the rows. A template that keeps it in "
        "the last answer alone learns it from one answer at a time: --train-on each-turn"
    ),
    "text beside calls": f"Give a template that writes text beside tool calls, {_TEMPLATE}, or remove that text",
    "reasoning": (
        f"Give a template with a place for reasoning, {_TEMPLATE}, or remove it from the rows. A template that keeps "
        "it in the last answer alone learns it from one answer at a time: --train-on each-turn"
    ),
    "place": f"Learn from one answer at a time with --train-on each-turn, or give another template {_TEMPLATE}",
    "system prompt": (
        f"Give a template with a place for a system message, {_TEMPLATE}, or put its text before the question"
    ),
    "tools": f"Give a template that shows tools, {_TEMPLATE}, or leave the column tools out",
    "tool calls": f"Give a template with a place for tool calls, {_TEMPLATE}, or remove the rows",
}


@dataclass(frozen=True)
class Loss:
    """One thing that the template does not write."""

    kind: str
    """A key of ADVICE."""
    index: int
    """Index of the message in the row."""
    text: str = ""

    def describe(self) -> str:
        """Describe the loss in words, without a full stop."""
        if self.kind == "tools":
            return f"shows no tools ({short(self.text)})"
        if self.kind == "place":
            return f"rewrites message {self.index + 1} depending on what follows, so its tokens cannot be told apart"
        return f"leaves out or rewrites {self.kind} of message {self.index + 1} ({short(self.text)})"

    def reason(self) -> str:
        """Return why a row is dropped."""
        whose = "" if self.kind in ("system prompt", "tools") else " of an answer"
        return f"{self.kind}{whose} lost in the chat template"


def find_unread(messages: list[Message], written: str) -> Loss | None:
    """Find the first system message whose text is not in ``written``, the rendered conversation."""
    for index, message in enumerate(messages):
        text = message_text(message) if message["role"] in ("system", "developer") else ""
        if not _stands(text, written) and not _spelt(text.strip(), written):
            return Loss("system prompt", index, text)
    return None


def find_loss(message: Message, index: int, written: str) -> Loss | None:
    """Find what of an assistant's message is not in ``written``, its turn as the template renders it."""
    if (given := reasoning_of(message)) and not _stands(given[1], written):
        return Loss("reasoning", index, given[1])
    calls = [list(_strings(call)) for call in message.get("tool_calls") or []]
    missing = next((text for call in calls for text in call if not _spelt(text, written)), None)
    names = Counter(call[0] for call in calls if call)
    missing = missing or next((name for name, count in names.items() if written.count(name) < count), None)
    if missing is not None:
        return Loss("tool calls", index, missing)
    content = message_text(message)
    if _stands(content, written):
        return None
    if "</think>" in content:
        return Loss("reasoning", index, content)
    return Loss("text beside calls" if message.get("tool_calls") else "text", index, content)


def _stands(text: str, written: str) -> bool:
    return text.strip() in written


def _spelt(text: str, written: str) -> bool:
    """Return whether text of a call occurs: as it is, as in JSON, or as in Python's single quotes."""
    in_python = text.replace("\\", r"\\").replace("'", r"\'").replace("\n", r"\n").replace("\r", r"\r")
    return any(spelling in written for spelling in (text, json.dumps(text, ensure_ascii=False)[1:-1], in_python))


def _strings(call: Any) -> Iterator[str]:
    """Yield the name of a called function, and names and values of its arguments."""
    function = call.get("function") if isinstance(call, dict) else None
    function = function if isinstance(function, dict) else call
    if isinstance(function, dict):
        yield str(function.get("name", ""))
        yield from _leaves(_arguments(function.get("arguments")))


def _arguments(arguments: Any) -> Any:
    """Parse arguments that are JSON text: a template may write them with other white space."""
    if isinstance(arguments, str):
        try:
            return json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
    return arguments


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield str(name)
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield json.dumps(value)

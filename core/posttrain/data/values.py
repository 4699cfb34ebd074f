"""Checks of column values: one function per kind, which returns what is wrong with a value, or None."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

from posttrain.contract.messages import is_messages
from posttrain.errors import short

ROLES = ("system", "developer", "user", "assistant", "tool")
#: Parts of a message's content that need an image, audio or video processor.
MEDIA = ("image", "image_url", "audio", "input_audio", "video")


def describe(value: Any) -> str:
    """Return the value as an error shows it, shortened."""
    if value is None:
        return "null"
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    return short(value)


def _message(value: dict[str, Any], number: int) -> str | None:
    role = value.get("role")
    if role is None:
        return f"has no role in message {number}, expected one of {', '.join(ROLES)}"
    if role not in ROLES:
        return f"has role {describe(role)} in message {number}, expected one of {', '.join(ROLES)}"
    if (weight := value.get("weight")) not in (None, 0, 1):
        return f"has weight {describe(weight)} in message {number}, expected 0 (not learnt) or 1"
    content = value.get("content")
    if content is None and value.get("tool_calls"):
        return None
    parts = isinstance(content, list) and all(isinstance(part, dict) and "type" in part for part in content)
    if not isinstance(content, str) and not parts:
        return f"has content {describe(content)} in message {number}, expected text"
    return None


def messages(value: Any) -> str | None:
    """Check for a conversation with at least one message."""
    if not isinstance(value, list):
        return f"is {describe(value)}, expected messages: a list of objects with role and content"
    if not value:
        return "is empty, expected at least one message"
    for number, item in enumerate(value, 1):
        if not isinstance(item, dict):
            return f"has {describe(item)} as message {number}, expected an object with role and content"
        if problem := _message(item, number):
            return problem
    return None


def text(value: Any) -> str | None:
    """Check for text that is not empty."""
    if not isinstance(value, str):
        return f"is {describe(value)}, expected text"
    return None if value else "is empty, expected text with at least one token to learn from"


def prompt(value: Any) -> str | None:
    """Check for text, possibly empty, or messages whose last is not the assistant's."""
    if isinstance(value, str):
        return None
    if not isinstance(value, list):
        return f"is {describe(value)}, expected text or messages"
    if problem := messages(value):
        return problem
    if value[-1]["role"] == "assistant":
        return "ends with an 'assistant' message, expected the user's: the answer belongs into the completion"
    return None


def asking(value: Any) -> str | None:
    """Check for a prompt to generate from, which cannot be empty."""
    return "is empty, expected text or messages" if value == "" else prompt(value)


def completion(value: Any) -> str | None:
    """Check for text that is not empty, or messages that end with the assistant's words."""
    if isinstance(value, str):
        return None if value else "is empty, expected at least one token to learn from"
    if not isinstance(value, list):
        return f"is {describe(value)}, expected text or messages"
    if problem := messages(value):
        return problem
    return last_turn(value)


def last_turn(value: list[dict[str, Any]]) -> str | None:
    """Check that messages end with an assistant's turn that is not empty."""
    last = value[-1]
    if last["role"] != "assistant":
        return f"ends with a '{last['role']}' message, expected the assistant's"
    if not last.get("content") and not last.get("tool_calls"):
        return "ends with an empty assistant message, expected at least one token to learn from"
    return None


def conversation(value: Any) -> str | None:
    """Check for messages with at least one turn of the assistant."""
    if problem := messages(value):
        return problem
    if not any(item["role"] == "assistant" and (item.get("content") or item.get("tool_calls")) for item in value):
        return "has no assistant message, expected at least one to learn from"
    return None


def sample(value: Any) -> str | None:
    """Check for text, messages, or an object of prompt and completion."""
    if isinstance(value, dict):
        for key, kind in (("prompt", prompt), ("completion", completion)):
            if key not in value:
                return f"has no '{key}', expected text, messages, or an object with prompt and completion"
            if problem := kind(value[key]):
                return f"is wrong: its '{key}' {problem}"
        return mixed_forms(value["prompt"], value["completion"])
    if isinstance(value, str):
        return text(value)
    if isinstance(value, list):
        return conversation(value)
    return f"is {describe(value)}, expected text, messages, or an object with prompt and completion"


def mixed_forms(prompt_value: Any, completion_value: Any) -> str | None:
    """Check that a prompt and its completion are both text or both messages."""
    if is_messages(prompt_value) != is_messages(completion_value):
        forms = [("messages" if is_messages(value) else "text") for value in (prompt_value, completion_value)]
        return f"is {forms[1]}, but the prompt is {forms[0]}, expected the same form"
    return None


def boolean(value: Any) -> str | None:
    """Check for true or false; 1 and 0 count as these."""
    return None if isinstance(value, bool) or value in (0, 1) else f"is {describe(value)}, expected true or false"


def number(value: Any) -> str | None:
    """Check for a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        return f"is {describe(value)}, expected a finite number"
    return None


def _listed(each: Callable[[Any], str | None], what: str) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        if not isinstance(value, list) or not value:
            return f"is {'empty' if value == [] else describe(value)}, expected a list of {what}"
        for place, item in enumerate(value, 1):
            if problem := each(item):
                return f"is wrong: its entry {place} {problem}"
        return None

    return check


def step(value: Any) -> str | None:
    """Check for one step of a solution: text, or one assistant message."""
    if isinstance(value, dict):
        return messages([value]) or last_turn([value])
    return text(value)


def step_label(value: Any) -> str | None:
    """Check for true, false, or a number between."""
    return None if isinstance(value, bool) else number(value)


def tools(value: Any) -> str | None:
    """Check for a list of JSON schemas."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return f"is {describe(value)}, expected a list of tool schemas (objects)"
    return None


def template_kwargs(value: Any) -> str | None:
    """Check for variables of a chat template by their names."""
    if not isinstance(value, dict):
        return f"is {describe(value)}, expected an object with variables of the chat template"
    return None


def token_ids(value: Any) -> str | None:
    """Check for a list of token ids."""
    if not isinstance(value, list):
        return f"is {describe(value)}, expected a list of token numbers"
    if not value:
        return "is empty, expected at least one token"
    return _first_wrong(value, lambda item: type(item) is int and item >= 0, "a token number, 0 or more")


def token_labels(value: Any) -> str | None:
    """Check for labels of tokens: -100 for a token that is not trained, else the token itself."""
    if not isinstance(value, list):
        return f"is {describe(value)}, expected a list with -100 or the token at each place"
    return _first_wrong(value, lambda item: type(item) is int and (item >= 0 or item == -100), "-100 or the token")


def token_mask(value: Any) -> str | None:
    """Check for zeros and ones, or false and true, one per token."""
    if not isinstance(value, list):
        return f"is {describe(value)}, expected a list of 0 and 1"
    return _first_wrong(value, lambda item: item in (0, 1), "0 or 1")


def token_counts(value: Any) -> str | None:
    """Check for whole numbers from 0: places of tokens, lengths of texts."""
    if not isinstance(value, list):
        return f"is {describe(value)}, expected a list of whole numbers"
    return _first_wrong(value, lambda item: type(item) is int and item >= 0, "a whole number, 0 or more")


def _first_wrong(items: list[Any], right: Callable[[Any], bool], expected: str) -> str | None:
    place = next((place for place, item in enumerate(items) if not right(item)), None)
    return None if place is None else f"has {describe(items[place])} at place {place}, expected {expected}"


completions = _listed(completion, "completions")
numbers = _listed(number, "finite numbers")
steps = _listed(step, "steps (text or assistant messages)")
step_labels = _listed(step_label, "true, false or numbers")

"""Conversations and instructions under the names of common data sets, as messages, prompts and completions."""

from __future__ import annotations

import json
from typing import Any

from posttrain.contract.messages import is_messages
from posttrain.data.convert import Notes, Row, Unconvertible, note

#: Names of speakers in from/value pairs -> roles. ``function_call`` is an assistant's turn with calls.
ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "model", "bot"), "assistant"),
    **dict.fromkeys(("observation", "tool", "tool_response", "function_response", "function"), "tool"),
}
_CALLS = ("function_call", "tool_call")
#: Columns that may hold from/value pairs; the first two become ``messages``.
_COLUMNS = ("conversations", "conversation", "messages", "prompt", "completion", "chosen", "rejected")


def usual_names(row: Row, notes: Notes) -> Row:
    """Convert from/value pairs to messages, instructions to prompts, and ``system`` to the first message.

    Raises Unconvertible for a call that is not JSON.
    """
    row = _instruction(row, notes)
    for name in _COLUMNS:
        row = _column(row, name, notes)
    if "prompt" not in row and _is_asked(row):
        row = {**{key: item for key, item in row.items() if key != "messages"}, "prompt": row["messages"]}
    return _with_system(row, notes)


def _is_asked(row: Row) -> bool:
    """Return whether ``messages`` beside a pair are the prompt of both answers."""
    messages: Any = row.get("messages")
    chosen: Any = row.get("chosen")
    if "rejected" not in row or not all(is_messages(value) and value for value in (messages, chosen)):
        return False
    return messages[-1].get("role") != "assistant" and chosen[0].get("role") == "assistant"


def _column(row: Row, name: str, notes: Notes) -> Row:
    value = row.get(name)
    turns = [value] if name in ("chosen", "rejected") and isinstance(value, dict) else value
    if not is_messages(turns) or not turns:
        return row
    target = "messages" if name in _COLUMNS[:2] else name
    if target != name and target in row:
        return row
    if all("from" in turn and "value" in turn and turn.get("role") is None for turn in turns):
        messages = [_message(turn, name, number) for number, turn in enumerate(turns, 1)]
        note(notes, f"column '{name}' read as messages")
    elif turns is value and target == name:
        return row
    elif all("role" in turn for turn in turns):
        messages = turns
        note(notes, f"column '{name}' read as messages")
    else:
        return row
    return {**{key: item for key, item in row.items() if key != name}, target: messages}


def _message(turn: dict[str, Any], column: str, number: int) -> dict[str, Any]:
    """Convert one turn; keys besides its speaker and text are kept."""
    speaker, text = turn["from"], turn["value"]
    rest = {key: item for key, item in turn.items() if key not in ("from", "value", "role")}
    if speaker not in _CALLS:
        return {"role": ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker, "content": text, **rest}
    return {"role": "assistant", "content": "", "tool_calls": _calls(text, column, number), **rest}


def _calls(text: Any, column: str, number: int) -> list[dict[str, Any]]:
    """Parse the calls of a turn: JSON of one or several, each with name and arguments."""
    try:
        found = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        found = None
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise Unconvertible(
            f"column '{column}' has a call in message {number} that is no JSON of a name and arguments: "
            f"{str(text)[:60]!r}."
        )
    return [
        {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}
        for call in calls
    ]


def _instruction(row: Row, notes: Notes) -> Row:
    """Convert ``instruction``, ``input`` and ``output`` to prompt and completion: the input below the instruction."""
    own = ("instruction", "input", "output")
    if any(not isinstance(row.get(name), str) for name in (own[0], own[2])):
        return row
    if any(name in row for name in ("prompt", "completion", *_COLUMNS)):
        return row
    given = row.get("input")
    if given is not None and not isinstance(given, str):
        return row
    prompt = row["instruction"] + (f"\n\n{given}" if given else "")
    note(notes, "columns instruction, input and output read as prompt and completion")
    rest = {name: value for name, value in row.items() if name not in own}
    return {**rest, "prompt": prompt, "completion": row["output"]}


def _with_system(row: Row, notes: Notes) -> Row:
    """Prepend a column ``system`` to messages without a system message; text prompts cannot hold one."""
    text = row.get("system")
    name = next((name for name in ("messages", "prompt") if is_messages(row.get(name)) and row[name]), None)
    if not isinstance(text, str) or name is None:
        return row
    rest = {key: value for key, value in row.items() if key != "system"}
    if not text.strip() or row[name][0].get("role") in ("system", "developer"):
        return rest
    note(notes, "column 'system' read as the system message")
    return {**rest, name: [{"role": "system", "content": text}, *row[name]]}

"""Conversations as text, a line or more for each turn: the form of an episode in reports, terminals and commands."""

from __future__ import annotations

import json
from typing import Any


def turn_text(message: dict[str, Any]) -> str:
    """Return the text of a message and its tool calls."""
    content = message.get("content")
    words = [content if isinstance(content, str) else json.dumps(content, ensure_ascii=False) if content else ""]
    for call in message.get("tool_calls") or []:
        if "error" in call:
            words.append(f"[{call['error']}]")
            continue
        function = call.get("function", {})
        words.append(f"{function.get('name')}({json.dumps(function.get('arguments'), ensure_ascii=False)})")
    return " ".join(filter(None, words))


def said_in(sample: dict[str, Any]) -> str:
    """Return a sampled completion as text: its own, or all turns of an episode with their roles."""
    messages = sample.get("messages")
    if not isinstance(messages, list):
        return str(sample.get("completion", ""))
    talk = [f"{message.get('role', '')}: {turn_text(message)}" for message in messages if isinstance(message, dict)]
    return "\n".join(talk)

"""Conversations as text, a line or more for each turn: what reports, terminals and commands show of an episode."""

from __future__ import annotations

import json
from typing import Any


def turn_text(message: dict[str, Any]) -> str:
    """Write what a message says and which tools it calls."""
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
    """Write a sampled completion: its text, or all turns of an episode with who said them."""
    messages = sample.get("messages")
    if not isinstance(messages, list):
        return str(sample.get("completion", ""))
    talk = [f"{message.get('role', '')}: {turn_text(message)}" for message in messages if isinstance(message, dict)]
    return "\n".join(talk)

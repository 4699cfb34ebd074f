"""Chat messages: how a list of them is recognised, and the text of one."""

from __future__ import annotations

from typing import Any


def is_messages(value: Any) -> bool:
    """Return whether ``value`` is conversational (a list of messages) rather than plain text."""
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def as_messages(prompt: Any) -> list[dict[str, Any]]:
    """Return a prompt as messages: plain text becomes a user message."""
    return prompt if is_messages(prompt) else [{"role": "user", "content": prompt}]


def is_learnt(message: dict[str, Any]) -> bool:
    """Return whether an assistant message is trained on: ``weight`` 0, OpenAI's key, excludes it."""
    return message["role"] == "assistant" and message.get("weight") != 0


def message_text(message: dict[str, Any]) -> str:
    """Return the text of a message's content; text parts are joined."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if part.get("type") == "text")
    return content or ""

"""The environment ``chat:http://HOST:PORT/v1#MODEL``: a server's model converses with the policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from posttrain.environments.chat import INSTRUCTIONS, ChatPartner
from posttrain.servers.chat import Chat


def partner_at(address: str) -> Callable[..., Any]:
    """Return the factory of conversations with the model at ``address``; it takes ``--environment-options``."""
    chats: dict[tuple[Any, ...], Chat] = {}

    def partner(
        instructions: str = INSTRUCTIONS,
        done: str = "[DONE]",
        failed: str = "[FAILED]",
        begins: bool = False,
        temperature: float = 1.0,
        max_tokens: int = 512,
        key_env: str | None = None,
        timeout: float = 120.0,
        retries: int = 4,
    ) -> ChatPartner:
        """Start a conversation; all conversations share one connection."""
        known = (temperature, max_tokens, key_env, timeout, retries)
        if known not in chats:
            options = {"temperature": temperature, "max_tokens": max_tokens, "seed": True}
            chats[known] = Chat(address, "partner", key_env, timeout, retries, **options)
        return ChatPartner(chats[known].ask, instructions, done, failed, begins)

    partner.__name__ = "chat"
    return partner

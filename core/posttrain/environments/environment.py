"""Environments: tasks that answer the model. One object plays one episode.

Subclass ``Environment``, or give any class with ``reset`` and ``step``. A list of functions is an environment too: the
model may call them until it answers without a call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from posttrain.environments.tools import Tool, run_calls, schema_of, tools_in

Message = dict[str, Any]


@dataclass
class Observation:
    """Answer of an environment to a turn of the model."""

    messages: list[Message] | str = field(default_factory=list)
    """Messages, or the text of one from the user; in episodes of plain text the text itself."""
    reward: float | None = None
    """Reward of the turn; None for none."""
    done: bool = False
    """Whether the episode ends here."""


class Player(Protocol):
    """Methods of an environment that rollouts call."""

    def reset(self, row: dict[str, Any], seed: int) -> list[Message] | str | None:
        """Start the episode of ``row``; return the messages before the model's first turn."""
        ...

    def step(self, message: Message) -> Observation | Any:
        """Answer a turn of the model: ``role``, ``content``, and ``tool_calls`` where it called tools."""
        ...


class Environment:
    """One episode. The model may call methods marked with ``tool``.

    The default ``step`` runs the calls of a turn and ends with the first turn that has none; ``reward`` then scores the
    episode.
    """

    def reset(self, row: dict[str, Any], seed: int) -> list[Message] | str | None:
        """Start the episode of ``row``; return the messages before the model's first turn, None for no more."""
        return None

    def step(self, message: Message) -> Observation:
        """Run the tools that ``message`` calls, or end the episode where it calls none."""
        calls = message.get("tool_calls")
        if not calls:
            return Observation(reward=self.reward(message), done=True)
        return Observation(run_calls(calls, tools_in(self)))

    def reward(self, message: Message) -> float | None:
        """Score the episode by the model's last message; None leaves that to the run's rewards."""
        return None

    def close(self) -> None:
        """Release the episode's resources."""

    @classmethod
    def rows(cls, size: int = 500, seed: int = 0) -> list[dict[str, Any]] | None:
        """Return tasks as rows with a column ``prompt``; None where the run must bring its own."""
        return None


class ToolUse(Environment):
    """An environment of functions alone."""

    def __init__(self, functions: Sequence[Callable[..., Any]]):
        self._tools = {tool.name: tool for tool in map(Tool.of, functions)}

    def step(self, message: Message) -> Observation:
        """Run the tools that ``message`` calls, or end the episode where it calls none."""
        calls = message.get("tool_calls")
        return Observation(run_calls(calls, self._tools)) if calls else Observation(done=True)


def begin(environment: Any, row: dict[str, Any], seed: int) -> list[Message] | str | None:
    """Start the episode of ``row``, with a seed where ``reset`` takes one; do nothing without ``reset``."""
    reset = getattr(environment, "reset", None)
    if reset is None:
        return None
    return reset(row, seed) if takes(reset, "seed") else reset(row)


def close(environment: Any) -> None:
    """Close an environment that has a ``close``."""
    getattr(environment, "close", lambda: None)()


def tools_of(environment: Any) -> list[dict[str, Any]]:
    """Return JSON schemas of an environment's tools for chat templates: its ``tools()``, or its marked methods."""
    if callable(getattr(environment, "tools", None)):
        return environment.tools()
    own = getattr(environment, "_tools", None)
    return [schema_of(tool) for tool in (own if isinstance(own, dict) else tools_in(environment)).values()]


def observation_of(result: Any, what: str) -> Observation:
    """Convert the result of ``step``: an observation, messages, text, or a tuple (messages, reward, done).

    Raises TypeError that names what was returned.
    """
    if isinstance(result, Observation):
        found = result
    elif isinstance(result, tuple) and len(result) in (2, 3):
        found = Observation(*result)
    elif result is None or isinstance(result, str | list):
        found = Observation(result or [])
    else:
        found = Observation(messages=result)
    if not isinstance(found.messages, str | list) or not all(isinstance(one, dict) for one in _listed(found.messages)):
        raise TypeError(
            f"{what} returned {result!r:.80}, expected an Observation, messages, text, or (messages, reward)"
        )
    if found.reward is not None:
        found.reward = float(found.reward)
    return found


def _listed(messages: Any) -> list[Any]:
    return messages if isinstance(messages, list) else []


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether ``function`` has a parameter ``name``, or takes any."""
    parameters = inspect.signature(function).parameters.values()
    return any(one.name == name or one.kind is one.VAR_KEYWORD for one in parameters)

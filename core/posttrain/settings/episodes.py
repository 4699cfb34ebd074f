"""Options of multi-turn answers: the environment, its tools, and their limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.errors import SettingsError
from posttrain.settings.limits import at_least


@dataclass(frozen=True)
class EpisodeSettings:
    """Tools and environments that answer the model's turns (online methods)."""

    environment: str | None = None
    """Environment that answers the model: an installed name (posttrain list-environments), file.py:CLASS, gym:NAME of
    Gymnasium, verifiers:TASKSET, the address of an OpenEnv server (http://HOST:PORT), or a chat server whose model
    talks with the policy (chat:http://HOST:PORT/v1#MODEL)."""
    environment_options: dict[str, str] | None = None
    """Options of the environment, as NAME=VALUE; size and seed apply to the rows that it makes."""
    tools: list[str] | None = None
    """Functions that the model may call before it answers: file.py:FUNCTION, or all of an MCP server (mcp:COMMAND,
    mcp:http://HOST:PORT/mcp). May be repeated."""
    max_turns: int = 8
    """Most turns of the model in one episode."""
    episode_tokens: int | None = None
    """Most tokens of an episode after the prompt, including those of the environment. [the model's positions]"""
    episodes_at_once: int | None = None
    """Episodes played at the same time; the next begins when one ends. [all of a step]"""
    episode_seconds: float = 600.0
    """Seconds after which an episode ends, once its current turn is over; 0 sets no limit."""
    tool_timeout: float = 60.0
    """Seconds that an environment may take to answer one turn; 0 sets no limit."""
    tool_workers: int = 32
    """Episodes whose environments answer at the same time, in threads."""
    environment_process: bool = False
    """Play each episode in a process of its own, forked from one that has loaded the environment: a hanging one is
    killed after tool-timeout seconds, and one that ends its process ends no other. Rows are passed as JSON."""
    environment_errors: Literal["end", "drop", "stop"] = "stop"
    """Treatment of an environment that raises or times out: end its episode there, drop it (not trained on), or stop
    the run. Errors of a tool are reported to the model."""
    rewritten_history: Literal["keep", "split", "refuse"] = "keep"
    """Treatment of earlier turns that a chat template rewrites (leaves thinking out): keep the sampled tokens and log
    it; split the episode there, so that each turn is sampled and trained behind what the template shows; or refuse to
    train."""

    def check(self) -> None:
        """Raise SettingsError for values that no run can have."""
        at_least("max-turns", self.max_turns, 1)
        at_least("episode-tokens", self.episode_tokens, 1)
        at_least("tool-workers", self.tool_workers, 1)
        at_least("episodes-at-once", self.episodes_at_once, 1)
        if self.environment is not None and self.tools:
            raise SettingsError(
                f"environment is '{self.environment}' and tools are {', '.join(self.tools)}. Expected one of the two: "
                "an environment brings its own tools."
            )
        if self.environment_process and self.environment is None and self.tools:
            raise SettingsError("environment-process is for environments; tools run in the trainer's process.")
        for name in ("episode_seconds", "tool_timeout"):
            if not getattr(self, name) >= 0:
                raise SettingsError(f"{name.replace('_', '-')} is {getattr(self, name)}, expected 0 or more seconds.")

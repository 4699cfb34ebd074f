"""Gymnasium environments with actions in text: discrete ones by number, text ones in words."""

from __future__ import annotations

import re
from typing import Any

from posttrain.environments.environment import Environment, Message, Observation
from posttrain.errors import DependencyError, SettingsError


class GymnasiumText(Environment):
    """One episode of a Gymnasium environment: observations are shown as text, actions are read from the answer."""

    def __init__(self, name: str):
        self.name = name
        self._game = make(name)
        self._count = getattr(self._game.action_space, "n", None)
        if self._count is None and type(self._game.action_space).__name__ != "Text":
            self._game.close()
            raise SettingsError(
                f"Gymnasium's '{name}' has actions of the kind {type(self._game.action_space).__name__}, which a model "
                "cannot say. Expected Discrete or Text."
            )

    def task_rows(self, size: int = 500, seed: int = 0) -> list[dict[str, Any]]:
        """Return rows with the rules; a row's start decides how its episode begins."""
        actions = f"an action, a number from 0 to {self._count - 1}" if self._count else "an action"
        text = f"You play {self.name}. Answer with {actions}."
        return [{"prompt": [{"role": "user", "content": text}], "start": seed * 100_003 + row} for row in range(size)]

    def reset(self, row: dict[str, Any], seed: int) -> str:
        """Start the episode of a row."""
        seen, _ = self._game.reset(seed=int(row.get("start", seed)) % 2**31)
        return self._shown(seen)

    def step(self, message: Message) -> Observation:
        """Take the model's action; report text that is no action."""
        said = str(message.get("content", ""))
        action: Any = said
        if self._count is not None:
            number = re.search(r"-?\d+", said)
            if number is None or not 0 <= int(number[0]) < self._count:
                return Observation(f"That is no action. Expected a number from 0 to {self._count - 1}.", 0.0)
            action = int(number[0])
        seen, reward, ended, cut, _ = self._game.step(action)
        return Observation(self._shown(seen), float(reward), bool(ended or cut))

    def close(self) -> None:
        """Close the game."""
        self._game.close()

    def _shown(self, seen: Any) -> str:
        if isinstance(seen, str):
            return seen
        drawn = self._game.render() if self._game.render_mode == "ansi" else None
        return re.sub(r"\x1b\[[0-9;]*m", "", drawn) if isinstance(drawn, str) else str(seen)


def make(name: str) -> Any:
    """Create the environment ``name``, rendered as text where possible. Raises DependencyError, SettingsError."""
    try:
        import gymnasium
    except ImportError:
        raise DependencyError(
            "Environments of Gymnasium need the package gymnasium. Install it with: pip install 'posttrain[gymnasium]'"
        ) from None
    try:
        modes = gymnasium.spec(name).kwargs.get("render_modes") or getattr(
            gymnasium.envs.registration.load_env_creator(str(gymnasium.spec(name).entry_point)), "metadata", {}
        ).get("render_modes", [])
        return gymnasium.make(name, render_mode="ansi" if "ansi" in modes else None)
    except gymnasium.error.Error as error:
        raise SettingsError(f"gym:{name}: {' '.join(str(error).split())}") from None
    except ImportError as error:
        raise DependencyError(f"gym:{name} needs more than gymnasium itself: {error}.") from None

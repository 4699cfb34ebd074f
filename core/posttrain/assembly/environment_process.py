"""Environments in separate processes (``--environment-process``): an episode that hangs is killed alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from posttrain.contract.images import portable_value
from posttrain.environments.environment import Observation, begin, observation_of
from posttrain.errors import DataError, RunFailed, SettingsError, short
from posttrain.servers.forks import Forks, ProcessLost
from posttrain.settings import EpisodeSettings


class ProcessEnvironment:
    """One episode, played in a process forked for it. ``timeout`` are the seconds for one answer."""

    def __init__(self, forks: Forks, name: str, timeout: float | None):
        self._name, self._timeout = name, timeout
        try:
            self._child = forks.child()
        except ProcessLost as error:
            raise RunFailed(f"The environment '{name}' has no process any more: {error}.") from None

    def reset(self, row: dict[str, Any], seed: int) -> Any:
        """Start the episode of ``row``."""
        return self._ask("reset", row, seed)

    def step(self, message: dict[str, Any]) -> Observation:
        """Answer a turn of the model."""
        return Observation(*self._ask("step", message))

    def reward(self, message: dict[str, Any]) -> float | None:
        """Score the episode by the model's last message, where the environment does so."""
        return self._ask("reward", message)

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._child.close()

    def _ask(self, action: str, *words: Any) -> Any:
        try:
            return self._child.ask(portable_value([action, *words]), self._timeout)
        except TimeoutError:
            raise TimeoutError(f"no answer to {action} in {self._timeout:g} seconds; its process was killed") from None
        except ProcessLost as error:
            raise RunFailed(f"The process of the environment '{self._name}' has ended at {action}: {error}.") from None
        except TypeError as error:
            raise DataError(f"A row cannot be sent to the environment '{self._name}': {error!s:.200}.") from None


class Apart:
    """Factory of episodes in separate processes, in place of the environment's class."""

    def __init__(self, settings: EpisodeSettings):
        asked = {"environment": settings.environment, "environment_options": settings.environment_options}
        try:
            self.forks = Forks(f"{__name__}:load", asked)
        except (ProcessLost, TimeoutError) as error:
            raise SettingsError(
                f"environment '{settings.environment}' cannot be loaded in a process of its own: {error}."
            ) from None
        self.name: str = self.forks.facts["name"]
        self.tools: list[dict[str, Any]] = self.forks.facts["tools"]
        self.__name__ = self.name
        self._timeout = settings.tool_timeout or None

    def __call__(self) -> ProcessEnvironment:
        """Return a new episode."""
        return ProcessEnvironment(self.forks, self.name, self._timeout)

    def rows(self, **asked: int) -> list[dict[str, Any]] | None:
        """Return the rows that the environment makes."""
        child = self.forks.child()
        try:
            return child.ask(["rows", asked])
        finally:
            child.close()


def load(asked: dict[str, Any]) -> tuple[Any, Callable[[], Callable[[Any], Any]]]:
    """Load an environment in this process; a Loader of ``posttrain.servers.forks``."""
    from posttrain.assembly.environment import find_task

    task = find_task(EpisodeSettings(**asked))
    assert task is not None
    makes_rows = getattr(task.kind, "rows", None) is not None

    def make() -> Callable[[Any], Any]:
        episode = functools.lru_cache(maxsize=1)(task.make)

        def answer(message: list[Any]) -> Any:
            action, *words = message
            if action == "rows":
                return portable_value(task.kind.rows(**words[0])) if makes_rows else None
            if action == "reset":
                return portable_value(begin(episode(), *words))
            if action == "step":
                found = observation_of(episode().step(*words), f"step of {task.name}")
                return [portable_value(found.messages), found.reward, bool(found.done)]
            if action == "reward":
                return getattr(episode(), "reward", lambda message: None)(*words)
            raise RunFailed(f"An environment has no action {short(action)}.")

        return answer

    return {"name": task.name, "tools": task.tools, "scores": task.scores}, make

"""Search for the environment or the tools of a run, their rows, and the player of their episodes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.assembly.environment_process import Apart
from posttrain.catalogue.entries import entries, load_entry, one
from posttrain.contract.messages import as_messages
from posttrain.data.rows import Rows
from posttrain.data.tokens.turns import Turns, describe_tools
from posttrain.environments.environment import ToolUse, close, tools_of
from posttrain.environments.http import HttpEnvironment
from posttrain.errors import PluginError, SettingsError, closest
from posttrain.rewards.load import convert_options, function_in_file
from posttrain.rollouts.episodes import EpisodePlayer
from posttrain.settings import DataSettings, EpisodeSettings
from posttrain.settings.secret_options import revealed

if TYPE_CHECKING:
    from posttrain.training.run import Compute

_FORMS = "Give an installed name, file.py:CLASS, or the address of an OpenEnv server"


@dataclass
class Task:
    """The environment of a run: the factory of its episodes, and the tools of the model."""

    name: str
    make: Callable[[], Any]
    kind: Any
    """The class, or the factory itself."""
    tools: list[dict[str, Any]]
    """JSON schemas of its tools."""
    scores: bool
    """Whether it may give rewards."""
    options: dict[str, Any]

    def rows(self) -> list[dict[str, Any]] | None:
        """Return the rows that it makes itself; None where the run must bring them. Raises SettingsError."""
        made = getattr(self.kind, "rows", None)
        if made is None:
            return None
        asked = {name: self.options[name] for name in ("size", "seed") if name in self.options}
        return made(**{name: int(value) for name, value in asked.items()})


def installed_environments() -> list[str]:
    """Return the names of all installed environments, sorted, without importing any."""
    return sorted({entry.name for entry in entries("environment")})


def find_task(settings: EpisodeSettings, environment: Any = None, tools: Any = None) -> Task | None:
    """Load the environment that is named, or given as objects; None for none.

    ``environment`` is a class, a function that makes one, or a list of functions, which are tools. Raises SettingsError
    and PluginError.
    """
    if environment is not None and isinstance(environment, list | tuple):
        tools, environment = list(environment), None
    functions = list(tools or []) or [one for spec in settings.tools or [] for one in _tools(spec)]
    if functions:
        kept = ToolUse(functions)  # functions have no state: one object serves all episodes
        return Task("tools", lambda: kept, ToolUse, tools_of(kept), False, {})
    if environment is None and settings.environment is None:
        return None
    if settings.environment_process:
        return _apart(settings, environment)
    kind = environment if environment is not None else _named(str(settings.environment))
    if not callable(kind):
        raise SettingsError(f"environment is {kind!r}, expected a class or a function that makes one. {_FORMS}.")
    name = str(getattr(kind, "__name__", settings.environment))
    options = revealed("environment_options", settings.environment_options or {})
    own = {key: value for key, value in options.items() if key not in ("size", "seed") or key in _parameters(kind)}
    make = functools.partial(kind, **convert_options(name, kind, own)) if own else kind
    example = make()
    if not callable(getattr(example, "step", None)):
        raise SettingsError(
            f"environment '{name}' has no method 'step', which answers a turn of the model. Derive it from "
            "posttrain.Environment, or give it one."
        )
    schemas = tools_of(example)
    close(example)
    return Task(name, make, kind, schemas, True, options)


def _apart(settings: EpisodeSettings, environment: Any) -> Task:
    """Load a named environment, each of whose episodes gets a separate process."""
    if environment is not None:
        raise SettingsError(
            f"environment-process is on, and environment {environment!r} is an object of this process. Name it by its "
            "file (file.py:CLASS) or its installed name, or leave out environment-process."
        )
    apart = Apart(settings)
    return Task(apart.name, apart, apart, apart.tools, True, dict(settings.environment_options or {}))


def _tools(spec: str) -> list[Callable[..., Any]]:
    """Load the function of ``FILE.py:FUNCTION``, or those of the server ``mcp:...``."""
    if spec.startswith("mcp:"):
        from posttrain.environments.mcp_tools import mcp_tools

        return mcp_tools(spec)
    return [function_in_file(spec, "tool")]


def _parameters(kind: Any) -> list[str]:
    try:
        return list(inspect.signature(kind).parameters)
    except (TypeError, ValueError):
        return []


def _named(spec: str) -> Any:
    if spec.startswith(("http://", "https://")):
        return functools.partial(HttpEnvironment, spec)
    if spec.startswith("chat:"):
        from posttrain.assembly.partner import partner_at

        return partner_at(spec.removeprefix("chat:"))
    if spec.startswith("verifiers:"):
        from posttrain.environments.verifiers_tasks import VerifiersTaskset

        taskset: Any = VerifiersTaskset(spec.removeprefix("verifiers:"))
        taskset.__name__ = taskset.name
        return taskset
    if spec.startswith("gym:"):
        from posttrain.environments.gymnasium_text import GymnasiumText

        name = spec.removeprefix("gym:")
        game = functools.partial(GymnasiumText, name)
        game.rows = GymnasiumText(name).task_rows  # type: ignore[attr-defined]
        game.__name__ = name  # type: ignore[attr-defined]
        return game
    if ":" in spec and spec.rpartition(":")[0].endswith(".py"):
        return function_in_file(spec, "environment")
    entry = one("environment", spec)
    if entry is None:
        names = installed_environments()
        if Path(spec.partition(":")[0]).suffix == ".py":
            raise SettingsError(f"environment '{spec}': name the class after the file: {spec}:CLASS.")
        raise SettingsError(
            f"No environment is called '{spec}'.{closest(spec, names)} "
            f"Installed: {', '.join(names) or 'none'}. {_FORMS}."
        )
    found = load_entry(entry)
    if not callable(found):
        raise PluginError(f"Environment '{spec}' is '{entry.value}', expected a class.")
    return found


def with_tools(rows: Rows, task: Task, tokenizer: Any, settings: DataSettings) -> Rows:
    """Add the task's tools to the prompts: by the chat template where it shows them, else in a system message."""
    if not task.tools:
        return rows
    turns = Turns(tokenizer, settings, set(), None)
    if not turns.templates.source:
        raise SettingsError(
            f"'{task.name}' has tools, and the tokenizer has no chat template to show them in. Give one with "
            "--chat-template FILE, or an environment without tools."
        )
    shown = turns.shows_tools(task.tools)

    def told(row: dict[str, Any]) -> dict[str, Any]:
        prompt = as_messages(row["prompt"])
        if shown:
            return row | {"prompt": prompt, "tools": task.tools}
        text = describe_tools(task.tools)
        if prompt[0]["role"] == "system":
            return row | {"prompt": [prompt[0] | {"content": f"{prompt[0]['content']}\n\n{text}"}, *prompt[1:]]}
        return row | {"prompt": [{"role": "system", "content": text}, *prompt]}

    return rows.changed(told, f"prompts told of the tools of '{task.name}'")


def make_player(compute: Compute, task: Task, say: Callable[[str], None]) -> EpisodePlayer:
    """Build the player of a run's episodes."""
    settings = compute.settings
    positions = getattr(compute.policy.inner.config.get_text_config(), "max_position_embeddings", None)
    apart = compute.policy.images is not None and compute.policy.images.prefix
    if apart and settings.episodes.max_turns > 1:
        say(
            f"{type(compute.policy.inner).__name__} reads what is before its answer in both directions, so each turn "
            "of an episode is sampled and trained as a text of its own, behind all that came before."
        )
    turns = Turns(compute.tokenizer, settings.data, compute.stop_ids, task.tools)
    return EpisodePlayer(task.make, turns, settings.episodes, positions or None, say, apart)

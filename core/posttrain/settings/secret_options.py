"""Secrets among the options of rewards, judges and environments, by their names: used by a run, written nowhere.

``judge.api_key=env:NAME`` reads the value from the environment when it is needed, and may be written as it is.
"""

from __future__ import annotations

import os
import re
from typing import Any

from posttrain.errors import SettingsError

#: Fields of Settings with such options.
FIELDS = ("reward_options", "judge_options", "environment_options")
#: Placeholder of a secret in files.
HIDDEN = "(not kept)"
_FROM = "env:"
#: Secrets that options held or named.
_USED: set[str] = set()
#: Characters of the shortest value that is redacted; shorter ones occur in texts by chance.
_SHORTEST = 8
_NAMED = re.compile(r"(^|[_.-])(api)?(key|token|secret|password|passwd|passphrase|credentials?)$", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Return whether an option of that name holds a secret; ``key_env`` only names a variable."""
    return _NAMED.search(name) is not None


def hidden(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run with secrets replaced, for a file."""
    return settings | {field: _hidden(settings[field]) for field in FIELDS if settings.get(field)}


def _hidden(options: dict[str, Any]) -> dict[str, Any]:
    return {name: HIDDEN if is_secret(name) and not _named(value) else value for name, value in options.items()}


def _named(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(_FROM)


def given(settings: dict[str, Any]) -> dict[str, Any]:
    """Select the secrets among the options of a run, by field: what a resumed run must be given again."""
    found = {field: settings[field] or {} for field in FIELDS}
    secrets = {field: {n: v for n, v in options.items() if is_secret(n)} for field, options in found.items()}
    return {field: options for field, options in secrets.items() if options}


def restored(field: str, stored: dict[str, Any] | None, changes: dict[str, Any]) -> dict[str, Any]:
    """Merge the secrets of ``changes`` into stored options. Raises SettingsError for a change of anything else."""
    for name in changes:
        if not is_secret(name) or name not in (stored or {}):
            raise SettingsError(
                f"'{field} {name}' cannot change in a resumed run; of these options only secrets that were not kept "
                f"are given again: {', '.join(n for n in stored or {} if is_secret(n)) or 'this run has none'}."
            )
    return (stored or {}) | changes


def revealed(field: str, options: dict[str, Any]) -> dict[str, Any]:
    """Look up the values of ``env:NAME`` among the options. Raises SettingsError where a secret is missing."""
    return {name: _revealed(field, name, value) if is_secret(name) else value for name, value in options.items()}


def _revealed(field: str, name: str, value: Any) -> Any:
    found = _looked_up(field, name, value)
    if isinstance(found, str):
        _USED.add(found)
    return found


def redacted(value: Any) -> Any:
    """Replace every known secret by stars in a text, or in the texts of lists and objects.

    Known are used options and environment variables that are named like secrets: an error of a reward or a server may
    repeat them.
    """
    known = {secret for name, secret in os.environ.items() if is_secret(name)} | _USED
    return _without(value, sorted((one for one in known if len(one) >= _SHORTEST), key=len, reverse=True))


def _without(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "***")
    elif isinstance(value, dict):
        return {_without(name, secrets): _without(one, secrets) for name, one in value.items()}
    elif isinstance(value, list | tuple):
        return [_without(one, secrets) for one in value]
    return value


def _looked_up(field: str, name: str, value: Any) -> Any:
    flag = "--" + field.replace("_", "-")
    if value == HIDDEN:
        raise SettingsError(
            f"Option '{name}' is named like a secret, so its value was not kept in the run's files. Give it again: "
            f"{flag} {name}=VALUE, or {flag} {name}=env:VARIABLE"
        )
    if not _named(value):
        return value
    variable = value.removeprefix(_FROM)
    if variable not in os.environ:
        raise SettingsError(f"Option '{name}' is '{value}', and the environment has no variable '{variable}'. Set it.")
    return os.environ[variable]

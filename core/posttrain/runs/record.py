"""Reading of a run's ``run.json``: its facts, with the types on which readers rely, and the settings of the run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from posttrain.catalogue.defaults import shared_options
from posttrain.errors import CheckpointError, SettingsError, short
from posttrain.runs.json_file import read_object
from posttrain.settings import Settings
from posttrain.settings.options import cast

NAME = "run.json"
_KINDS = {
    **dict.fromkeys(("settings", "options", "card"), (dict, "an object")),
    **dict.fromkeys(("in_memory", "modifiers"), (list, "a list")),
    **dict.fromkeys(("method", "started"), (str, "a text")),
    "total_steps": (int, "a whole number"),
}
_ADVICE = "Restore it from a copy; the run's models can be used without it, by their folders: RUN/model"


def read_record(folder: Path, needs: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read the run.json of a run directory; all facts in ``needs`` are there.

    Raises CheckpointError where there is none, or where it is damaged.
    """
    file = folder / NAME
    if not os.path.lexists(file):
        raise CheckpointError(f"'{folder}' is not a run directory: it has no {NAME}.")
    facts = read_object(file, CheckpointError, _ADVICE)
    for name, (kind, expected) in _KINDS.items():
        value = facts.get(name)
        if (name in needs or value is not None) and not isinstance(value, kind):
            raise CheckpointError(f"'{file}' has {short(value)} as its {name}, expected {expected}. {_ADVICE}")
    return facts


def stored_settings(folder: Path) -> Settings:
    """Return the settings of the run in ``folder``. Raises CheckpointError as ``read_record``, and for a wrong type."""
    stored = read_record(folder, ("settings",))["settings"]
    for option in shared_options():
        if option.name in stored:
            try:
                cast(option.name, stored[option.name], option.kind)
            except SettingsError as error:
                raise CheckpointError(f"'{folder / NAME}': {error} {_ADVICE}") from None
    return Settings.from_record(stored)

"""``--allow-plugins``: a list of the plugins that a run may load, for machines where not everybody is trusted.

Nothing loads that was not named, so without a list everything named in the run is allowed. The methods and rewards
that belong to posttrain itself are always allowed.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator

from posttrain.catalogue import known
from posttrain.discovery import Installed
from posttrain.errors import SettingsError
from posttrain.settings import Settings

VARIABLE = "POSTTRAIN_ALLOW_PLUGINS"


def check_allowed(row: Installed, settings: Settings, allowed: list[str] | None) -> None:
    """Raise SettingsError if the run names a plugin outside ``allowed``, or outside the variable's list if None."""
    listed = allowed if allowed is not None else _from_environment()
    if listed is None:
        return
    names = {name.strip() for text in listed for name in text.split(",")}
    for kind, name, distribution in _named(row, settings):
        if name not in names:
            raise SettingsError(
                f"{kind} '{name}' of {distribution} is not among the allowed plugins ({', '.join(sorted(names))}). "
                f"Add it with: --allow-plugins {','.join(sorted({*names, name}))}"
            )


def _from_environment() -> list[str] | None:
    value = os.environ.get(VARIABLE)
    return None if value is None else [value]


def _data(settings: Settings) -> list[str]:
    return [*(settings.data or []), *(settings.eval_data or [])]


def _named(row: Installed, settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Kind, name and package of each plugin that the run names and that is not posttrain's own."""
    fact = known().get(row.name)
    if row.folder is not None:
        yield "Method", row.name, f"folder {row.folder}"
    elif fact is None or fact.distribution != row.distribution:
        yield "Method", row.name, row.distribution
    for kind, group, names in (
        ("Reward", "posttrain.rewards", [reward.partition("=")[0] for reward in settings.reward or []]),
        ("Judge", "posttrain.rewards", [settings.judge] if settings.judge else []),
        ("Source", "posttrain.sources", [data.partition(":")[0] for data in _data(settings)]),
        ("Observer", "posttrain.observers", settings.observers or []),
    ):
        for entry in importlib.metadata.entry_points(group=group):
            package = entry.dist.name if entry.dist else "(unknown package)"
            if entry.name in names and package != "posttrain":
                yield kind, entry.name, package

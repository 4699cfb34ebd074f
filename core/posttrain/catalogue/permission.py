"""``--allow-plugins``: the list of plugins that may be loaded, for machines with untrusted users.

Only plugins named in a command are loaded, so without a list all are allowed. What belongs to posttrain itself (its
rewards, and the stable methods in their released files) is always allowed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from posttrain.errors import SettingsError

VARIABLE = "POSTTRAIN_ALLOW_PLUGINS"
FLAG = "--allow-plugins"


def check(kind: str, name: str, origin: str) -> None:
    """Raise SettingsError if the plugin ``name`` from ``origin`` is not in the list."""
    listed = os.environ.get(VARIABLE)
    if listed is None:
        return
    names = {word.strip() for word in listed.split(",")} - {""}
    if name not in names:
        raise SettingsError(
            f"{kind.capitalize()} '{name}' of {origin} is not among the allowed plugins "
            f"({', '.join(sorted(names)) or 'none'}). Add it with: {FLAG} {','.join(sorted({*names, name}))}"
        )


def take_flag(words: list[str]) -> tuple[list[str], str | None]:
    """Remove ``--allow-plugins`` from a command; return the other words and its value. Words after ``--`` are kept.

    Raises SettingsError for a flag without a value.
    """
    end = words.index("--") if "--" in words else len(words)
    rest: list[str] = []
    given: list[str] = []
    own = iter(words[:end])
    for word in own:
        flag, equals, value = word.partition("=")
        if flag != FLAG:
            rest.append(word)
            continue
        value = value if equals else next(own, "--")
        if value.startswith("--"):
            raise SettingsError(f"Flag '{FLAG}' needs a value: names of plugins, separated by commas.")
        given.append(value)
    return rest + words[end:], ",".join(given) if given else None


@contextmanager
def allowing(names: str | None) -> Iterator[None]:
    """Set the list to ``names`` inside the block, for this process and those it starts; None keeps the list."""
    before = os.environ.get(VARIABLE)
    try:
        if names is not None:
            os.environ[VARIABLE] = names
        yield
    finally:
        if names is not None:
            os.environ.pop(VARIABLE, None)
            if before is not None:
                os.environ[VARIABLE] = before

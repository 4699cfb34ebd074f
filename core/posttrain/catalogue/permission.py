"""``--allow-plugins``: a list of the plugins that may be loaded, for machines where not everybody is trusted.

Nothing loads that was not named in a command, so without a list everything named is allowed. What belongs to posttrain
itself (its rewards, and the stable methods in the files that it released) is always allowed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from posttrain.errors import SettingsError

VARIABLE = "POSTTRAIN_ALLOW_PLUGINS"
FLAG = "--allow-plugins"


def check(kind: str, name: str, origin: str) -> None:
    """Raise SettingsError if the plugin ``name``, which comes from ``origin``, is not in the list."""
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
    """The words of a command without ``--allow-plugins``, and its value; what follows ``--`` is another command's.

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
    """Let ``names`` be the list for this process and those it starts; None leaves the list as it is."""
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

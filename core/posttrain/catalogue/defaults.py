"""Options and defaults of a method, read without importing it."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from posttrain.catalogue.cards import Card
from posttrain.errors import MethodError, SettingsError
from posttrain.settings import EXPERT, SECTIONS, names_of
from posttrain.settings.options import Option, read_options


@functools.cache
def shared_options() -> tuple[Option, ...]:
    """The fields of all sections of ``Settings`` in order, each with the first line of its section's docstring."""
    return tuple(
        replace(option, section=str(kind.__doc__).rstrip("."))
        for kind in SECTIONS.values()
        for option in read_options(Path(str(sys.modules[kind.__module__].__file__)), kind.__name__)
    )


def usual_options(card: Card) -> tuple[Option, ...]:
    """Options that ``--help`` shows for a method: those that have an effect there and that others than experts set."""
    online = () if card.online else ("rollouts", "sampling", "generation", "correction")
    needs = [need.partition(" when ")[0] for need in card.needs]
    absent = [*online, *(section for section in ("reference", "teacher") if section not in needs)]
    hidden = EXPERT | {name for section in absent for name in names_of(section)}
    return tuple(option for option in shared_options() if option.name not in hidden)


def method_options(card: Card) -> list[Option]:
    """The fields of the method's ``Config``, read from its source. Raises MethodError where two names collide."""
    assert card.path is not None  # only cards of the catalogue have none, and those are not installed
    options = read_options(card.path.parent / "__init__.py")
    shared = {option.name for option in shared_options()}
    for option in options:
        if option.name in shared:
            raise MethodError(f"Method '{card.name}' has an option '{option.name}', which every run has. Rename it.")
    return options


def split_modifier(text: str) -> tuple[str, dict[str, str]]:
    """Name (or folder) and options of a modifier written as NAME or NAME:OPTION=VALUE,OPTION=VALUE."""
    found = re.fullmatch(r"(.+?)(?::([\w-]+=.*))?", text, re.DOTALL)
    if found is None:
        raise SettingsError(f"Modifier {text!r} has no name. Write NAME or NAME:OPTION=VALUE.")
    items = re.split(r",(?=\s*[\w-]+=)", found[2]) if found[2] else []
    pairs = [item.strip().partition("=") for item in items]
    return found[1], {key.replace("-", "_"): value for key, _, value in pairs}


def shared_defaults(card: Card) -> dict[str, Any]:
    """What the shared options are for this method when nobody says otherwise."""
    return {option.name: option.default for option in shared_options()} | card.defaults


def unknown(key: str, names: Iterable[str], prefix: str = "") -> str:
    """The sentence for an option that does not exist."""
    close = get_close_matches(key[:100], list(names), n=1)
    hint = f" Did you mean '{prefix}{close[0]}'?" if close else ""
    return f"Unknown option '{prefix}{key if len(key) <= 100 else key[:97] + '...'}'.{hint}"

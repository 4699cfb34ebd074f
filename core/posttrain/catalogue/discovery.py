"""Installed methods, found from package metadata and cards. Imports neither plugins nor torch.

Entry points (group ``posttrain.methods``) look a method up, pluggy calls it (``methods.py``).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from posttrain import __version__
from posttrain.catalogue.cards import NAME, Card, read_card
from posttrain.catalogue.catalogue import digest_of, known
from posttrain.catalogue.entries import Entry, entries
from posttrain.catalogue.versions import incompatible
from posttrain.errors import CardError, MethodError, closest

CARD = "method.toml"
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Installed:
    """One method of a package (or a folder); ``problem`` says in one line why it cannot be used."""

    name: str
    card: Card | None
    distribution: str
    version: str
    module: str
    problem: str | None = None
    folder: Path | None = None
    """Folder of the package, for a method used without installation."""


@functools.cache
def installed() -> list[Installed]:
    """List all installed methods by name, including broken ones, one row each. Scans once per process."""
    return _rows(entries("method"))


def _rows(found: list[Entry]) -> list[Installed]:
    places = _places() if len(found) > 1 else {}
    rows = [_row(entry, places) for entry in found]
    counts = Counter(row.name for row in rows)
    marked = [replace(row, problem=_clash(rows, row)) if counts[row.name] > 1 else row for row in rows]
    return sorted(marked, key=lambda row: (row.name, row.distribution))


def find(name: str) -> Installed:
    """Find the usable installed method ``name``. Raises MethodError if it is missing, misspelt, ambiguous or broken."""
    rows = _rows(entries("method", name))  # no other method's card is read
    if not rows:
        raise MethodError(_missing(name))
    if len(rows) > 1:
        raise MethodError(f"Method '{name}' is {rows[0].problem}")
    return usable(rows[0])


def usable(row: Installed) -> Installed:
    """Return ``row``. Raises MethodError with the reason if it is broken or made for another version of posttrain."""
    if row.card is not None and (reason := incompatible(row.card)):
        raise MethodError(f"Method '{row.name}' {row.card.version} {reason}")
    if row.problem:
        where = str(row.folder) if row.folder else f"{row.distribution} {row.version}"
        raise MethodError(f"Method '{row.name}' ({where}) is broken: {row.problem}")
    return row


def is_folder(name: str) -> bool:
    """Return whether ``name`` is a plugin's folder: it has a path separator or begins with a dot or a tilde."""
    return name.startswith((".", "~")) or "/" in name or "\\" in name


def find_folder(path: str | Path) -> Installed:
    """Find the method in the folder of a plugin that is not installed: its project folder, or the package itself."""
    root = Path(path).expanduser()
    if not root.is_dir():
        raise MethodError(f"There is no folder '{path}'. Make a plugin with: posttrain new NAME")
    cards = [root / CARD] if (root / CARD).is_file() else sorted([*root.glob(f"*/{CARD}"), *root.glob(f"src/*/{CARD}")])
    if not cards:
        raise MethodError(f"Folder '{path}' holds no method: no {CARD} in it, or in a package in it or in its src.")
    if len(cards) > 1:
        raise MethodError(
            f"Folder '{path}' holds {len(cards)} methods: {', '.join(map(str, cards))}. Name one of them."
        )
    package = cards[0].parent.resolve()
    card = _granted(read_card(cards[0]), package)
    problem = None if (package / "__init__.py").is_file() else f"{package} has no __init__.py."
    row = Installed(card.name, card, card.distribution, card.version, card.module, problem, package)
    return usable(row)


def locate(name_or_folder: str) -> Installed:
    """Find the method of a command's METHOD: a name or a folder."""
    return find_folder(name_or_folder) if is_folder(name_or_folder) else find(name_or_folder)


def _row(entry: Entry, places: dict[str, str]) -> Installed:
    module = entry.value.strip()
    row = Installed(entry.name, None, entry.package, entry.version, module, entry.problem)
    if entry.problem:
        return row
    try:
        card = _card(entry.name, module, places)
    except MethodError as error:
        return replace(row, problem=str(error))
    except Exception as error:  # a neighbour's broken files must not hide the other methods
        detail = " ".join(str(error).split())[:200]
        return replace(row, problem=f"its card cannot be read: {type(error).__name__}: {detail}")
    return replace(row, card=card, problem=incompatible(card))


def _card(name: str, module: str, places: dict[str, str]) -> Card:
    # A dotted name would import its parent; the rule on names keeps listing free of plugins' code.
    if not NAME.fullmatch(name):
        raise CardError(f"entry point '{name}' is not lower-case words joined by hyphens.")
    if not _IDENTIFIER.fullmatch(module):
        raise CardError(f"its entry point names '{module}', expected one top-level module.")
    try:
        spec = _spec(module, places)
    except (ImportError, ValueError) as error:
        raise CardError(f"module '{module}' cannot be looked up: {error}.") from None
    if spec is None:
        raise CardError(f"module '{module}' does not exist. Install the package again.")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    path = next((folder / CARD for folder in folders if (folder / CARD).is_file()), None)
    if path is None:
        raise CardError(f"module '{module}' has no {CARD} beside its code. Put it into the wheel (package data).")
    card = read_card(path)
    if card.name != name:
        raise CardError(f"its card says name '{card.name}', its entry point says '{name}'.")
    # A compiled module would take precedence over the source that the digest covers.
    from_source = spec.origin is not None and Path(spec.origin) == path.parent / "__init__.py"
    return _granted(card, path.parent if from_source else None)


def _places() -> dict[str, str]:
    """Map each top-level name to its first entry of ``sys.path``. Listed once: every look-up would ask all entries."""
    places: dict[str, str] = {}
    for entry in sys.path:
        with contextlib.suppress(OSError):
            for file in os.listdir(entry or "."):
                places.setdefault(file.partition(".")[0], entry)
    return places


def _spec(module: str, places: dict[str, str]) -> ModuleSpec | None:
    """Find the module's spec as the import system does; ``places`` names the entry to ask first."""
    if module in places and module not in sys.modules:
        found = PathFinder.find_spec(module, [places[module]])
        if found is not None and found.loader is not None:
            return found
    return importlib.util.find_spec(module)


def _granted(card: Card, package: Path | None) -> Card:
    """Downgrade a card that calls itself stable, unless its files are those that this posttrain knows as stable."""
    fact = known().get(card.name)
    if card.tier != "stable":
        return card
    known_files = fact.digest if fact is not None and fact.tier == "stable" else ""
    ours = package is not None and known_files and known_files == digest_of(package)
    return card if ours else replace(card, tier="experimental")


def modified(card: Card) -> str | None:
    """Return the notice for a method with a stable one's name but other files; None for others."""
    fact = known().get(card.name)
    if fact is None or fact.tier != "stable" or card.tier != "experimental":
        return None
    return (
        f"'{card.name}' is not the stable method of that name which posttrain {__version__} knows: its files are "
        "others. It counts as experimental."
    )


def _clash(rows: list[Installed], row: Installed) -> str:
    names = sorted(f"{other.distribution} {other.version}" for other in rows if other.name == row.name)
    count = "two" if len(names) == 2 else str(len(names))
    uninstall = "Uninstall one." if len(names) == 2 else "Keep one of them."
    return f"provided by {count} packages: {', '.join(names[:-1])} and {names[-1]}. {uninstall}"


def _missing(name: str) -> str:
    if fact := known().get(name):
        return f"Method '{name}' is not installed. Install it with: pip install {fact.distribution}"
    if Path(name).is_dir():
        return f"No method is called '{name}'. There is a folder of that name; for a method in it write ./{name}"
    names = {row.name for row in installed()} | set(known())
    hint = closest(name, sorted(names))
    return f"No method is called '{name}'.{hint}  All methods: posttrain list-methods --available"

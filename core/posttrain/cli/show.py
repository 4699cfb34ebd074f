"""``posttrain show METHOD``: the card, the docstring and the options of a method, without importing it."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from typing import Any

from posttrain.catalogue.defaults import method_options, shared_defaults, shared_options
from posttrain.catalogue.discovery import Installed, locate, modified
from posttrain.cli.flags import Parser, help_text
from posttrain.cli.output import print_json
from posttrain.example import example
from posttrain.settings.options import Option, describe, docstring


def run(arguments: list[str]) -> int:
    """Print everything about one method."""
    parser = Parser("show", "Show what a method is, and its options.")
    parser.add_argument("method", help="name of an installed method, or a plugin's folder")
    parser.add_argument("--all", action="store_true", help="also the options that every run has")
    parser.add_json()
    options = parser.parse_args(arguments)
    row = locate(options.method)
    facts = describe_method(row)
    if options.json:
        print_json(facts)
        return 0
    card = row.card
    assert card is not None  # locate() raises for a row without a card
    print(f"{card.name} {card.version} ({card.tier}): {card.summary}\n")
    if facts["note"]:
        print(f"{facts['note']}\n")
    print(textwrap.indent(facts["documentation"], "  ") + "\n")
    for label in ("schemas", "needs", "columns", "paper", "family", "defaults", "distribution"):
        if value := facts[label]:
            print(f"{label + ':':<14}{_words(value)}")
    if card.modifier:
        own = [option.name for option in method_options(card) if option.name not in card.alone]
        print(f"{'modifier:':<14}posttrain train METHOD --modifier {card.name}{f':{own[0]}=VALUE' if own else ''}")
        print(f"{'':<14}options then: {', '.join(own) or 'none'}")
    print(help_text([replace(option, section=f"Options of {card.name}") for option in method_options(card)], {}))
    print(f"\nTry it on a small model and task made on the spot: {facts['example']}")
    if options.all:
        print(help_text(shared_options(), shared_defaults(card)))
    else:
        print(f"Options that every run has: posttrain show {options.method} --all")
    return 0


def describe_method(row: Installed) -> dict[str, Any]:
    """Return the facts of an installed method as JSON: its card, its options and those of every run."""
    card = row.card
    assert card is not None  # a usable row has a card
    assert card.path is not None  # with a file
    return {
        "name": card.name,
        "version": card.version,
        "tier": card.tier,
        "note": modified(card),
        "summary": card.summary,
        "schemas": list(card.schemas),
        "needs": list(card.needs),
        "columns": list(card.columns),
        "modifier": card.modifier,
        "paper": card.paper,
        "family": card.family,
        "requires": list(card.requires),
        "waivers": card.waivers,
        "defaults": card.defaults,
        "distribution": row.distribution,
        "module": row.module,
        "example": example.command(row.name if row.folder is None else str(row.folder)),
        "documentation": docstring(card.path.parent / "__init__.py"),
        "options": [_option(option) for option in method_options(card)],
        "shared_options": [_option(option, shared_defaults(card)) for option in shared_options()],
    }


def _option(option: Option, defaults: dict[str, Any] | None = None) -> dict[str, Any]:
    default = (defaults or {}).get(option.name, option.default)
    return {
        "name": option.name,
        "flag": option.flag,
        "type": describe(option.kind),
        "default": default,
        "help": option.help,
    }


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)

"""Flags of a command from its options: ``--name value``, ``--name=value``, ``--switch``, ``--no-switch``."""

from __future__ import annotations

import argparse
import textwrap
import types
import typing
from collections.abc import Iterable
from typing import Any, NoReturn

from posttrain.catalogue.defaults import unknown
from posttrain.errors import SettingsError
from posttrain.settings.options import Option, describe
from posttrain.settings.values import refuse_empty


class Parser(argparse.ArgumentParser):
    """argparse for commands with few flags: errors are one line, flags are never abbreviated."""

    def __init__(self, command: str, description: str):
        super().__init__(prog=f"posttrain {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise SettingsError with the message and the command that shows the flags."""
        raise SettingsError(f"{message[:1].upper()}{message[1:]}.  Flags: {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the flags. Raises SettingsError also for an empty word or --output: a variable that is not set."""
        found, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            value = getattr(found, action.dest, None)
            if not action.option_strings or action.dest == "output":
                for text in value if isinstance(value, list) else [value]:
                    refuse_empty(action.option_strings[0] if action.option_strings else action.dest, text)
        return found, rest

    def add_json(self) -> None:
        """Add ``--json``."""
        self.add_argument("--json", action="store_true", help="print JSON")


def parse(arguments: list[str], options: Iterable[Option], command: str) -> tuple[list[str], dict[str, Any]]:
    """Parse positional arguments, and values as text by snake_case name. Switches are bools, lists and pairs are lists.

    Raises SettingsError for a flag that is unknown or lacks its value; ``command`` is named in its text.
    """
    known = {option.flag: option for option in options}
    known |= {"--no-" + flag[2:]: option for flag, option in list(known.items()) if _is_switch(option)}
    positional: list[str] = []
    values: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            refuse_empty("a word of the command", word)
            positional.append(word)
            continue
        flag, equals, text = word.partition("=")
        if flag not in known:
            sentence = unknown(flag.lstrip("-"), [name[2:] for name in known], prefix="--")
            raise SettingsError(f"{sentence}  All flags: posttrain {command} --help")
        option = known[flag]
        if _is_switch(option) and not equals:
            values[option.name] = flag == option.flag
            continue
        if flag != option.flag:
            raise SettingsError(f"Flag '{flag}' takes no value, it was given '{text}'.")
        if not equals:
            text = _value(flag, option, rest)
        if option.name == "output":
            refuse_empty(flag, text)
        if _is_many(option.kind):
            values.setdefault(option.name, []).append(text)
        else:
            values[option.name] = text
    return positional, values


def _value(flag: str, option: Option, rest: list[str]) -> str:
    if not rest or rest[0].startswith("--"):
        raise SettingsError(f"Flag '{flag}' needs a value: {describe(option.kind)}.")
    return rest.pop(0)


def _kinds(kind: Any) -> tuple[Any, ...]:
    union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    return tuple(k for k in typing.get_args(kind) if k is not type(None)) if union else (kind,)


def _is_switch(option: Option) -> bool:
    return _kinds(option.kind) == (bool,)


def _is_many(kind: Any) -> bool:
    return typing.get_origin(_kinds(kind)[0]) in (list, dict, tuple)


def check_range(flag: str, value: int, least: int, most: int | None = None) -> None:
    """Raise SettingsError for a number outside of ``least`` to ``most``."""
    if value < least or (most is not None and value > most):
        bound = "upwards" if most is None else f"to {most}"
        raise SettingsError(f"{flag} is {value}, expected a number from {least} {bound}.")


def help_text(options: Iterable[Option], defaults: dict[str, Any], width: int = 100) -> str:
    """Return all flags with type, default and help, under the headings of their class."""
    lines: list[str] = []
    section = None
    for option in options:
        if option.section != section:
            section = option.section
            lines += ["", f"{section}:"]
        flag = f"{option.flag}/--no-{option.flag[2:]}" if _is_switch(option) else option.flag
        default = defaults.get(option.name, option.default)
        shown = "" if default in (None, "", False) else f" [{default}]"
        lines.append(f"  {flag}{'' if _is_switch(option) else '  ' + describe(option.kind)}{shown}")
        lines += textwrap.wrap(option.help, width - 8, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines)

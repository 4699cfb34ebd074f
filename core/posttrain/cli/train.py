"""``posttrain train METHOD``: resolve and check everything; ``posttrain.api.train`` runs it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from posttrain.assembly.config import as_yaml, read_file, resolve
from posttrain.catalogue.cards import Card
from posttrain.catalogue.defaults import method_options, shared_defaults, shared_options, usual_options
from posttrain.catalogue.discovery import locate
from posttrain.cli.flags import help_text, parse
from posttrain.cli.imports import load_api
from posttrain.cli.output import print_json, print_plan
from posttrain.distributed import launch as launching
from posttrain.distributed.lifeline import end_with_parent
from posttrain.distributed.restart import continued
from posttrain.distributed.world import quieten
from posttrain.errors import SettingsError
from posttrain.runs.directory import new_run_directory
from posttrain.settings import secret_options
from posttrain.settings.options import Option

USAGE = """usage: posttrain train METHOD --model MODEL --data DATA [flags]
       posttrain train ./my-loss ...            a plugin's folder, not installed
       posttrain train --config run.yaml ...    options, and the method, from a file"""
#: Flags of the command itself; all others are options of the run or of the method.
OWN = [
    Option(name, kind, default, text, "This command")
    for name, kind, default, text in (
        ("method", str, None, "Name of an installed method, or a plugin's folder. May be the first word instead."),
        ("config", str, None, "YAML or TOML file of options; flags win over it."),
        ("print_config", bool, False, "Print the resolved options as YAML and stop."),
        ("dry_run", bool, False, "Say what would happen and what memory it needs, and stop; no weights are loaded."),
        ("json", bool, False, "With dry-run: print JSON."),
        ("take_over", bool, False, "Own the output folder though its owner is on another host."),
        ("help", bool, False, "Print the usual options of this method and stop."),
        ("help_all", bool, False, "Print every option and stop."),
    )
]


def run(arguments: list[str]) -> int:
    """Train. Return 0; a failed run or an alert raises with its own exit code."""
    words = ["--help" if word == "-h" else word for word in arguments]
    name, file, file_name = _method(words)
    if name is None:
        if "--help" in words or "--help-all" in words:
            print(USAGE + help_text([*OWN, *shared_options()], {}))
            return 0
        raise SettingsError("No method was given. Write: posttrain train METHOD. All methods: posttrain list-methods")
    row = locate(name)
    assert row.card is not None  # locate() raises for a row without a card
    own = method_options(row.card)
    positional, flags = parse(words, [*OWN, *shared_options(), *own], f"train {name}")
    command = {option.name: flags.pop(option.name) for option in OWN if option.name in flags}
    _check_words(positional, "method" in command, name)
    if command.get("help") or command.get("help_all"):
        _print_help(row.card, own, everything=bool(command.get("help_all")))
        return 0
    settings, options = resolve(row.card, own, file, flags, file_name)
    if command.get("print_config"):
        print(as_yaml(name, settings.flat(), options, own), end="")
        return 0
    if command.get("dry_run"):
        plan = load_api().plan(name, settings, options)
        print_json(plan) if command.get("json") else print_plan(plan)
        return 0
    if launching.wanted(settings.distributed):
        output = settings.watch.output or new_run_directory(name)  # named once, for all processes and every restart
        return launching.launch(["train", *arguments, f"--output={output}"], settings.distributed, output)
    quieten()
    end_with_parent()
    take_over = bool(command.get("take_over"))
    api = load_api()
    started, settings = continued(name, settings)
    if started is not None:
        api.resume(started, take_over=take_over, **secret_options.given(settings.flat()))
        return 0
    api.train(name, settings, options, take_over=take_over)
    return 0


def _method(words: list[str]) -> tuple[str | None, dict[str, Any], str]:
    """Return the method's name and the configuration file: needed before the flags, some of which are the method's."""
    file: dict[str, Any] = {}
    file_name = _peek(words, "--config") or ""
    if file_name:
        file = read_file(file_name)
    first = words[0] if words and not words[0].startswith("-") else None
    given = {name for name in (first, _peek(words, "--method")) if name}
    if len(given) > 1:
        raise SettingsError(f"Two methods were given: {' and '.join(sorted(given))}. A run has one.")
    name = given.pop() if given else file.get("method")
    if name is not None and not isinstance(name, str):
        raise SettingsError(f"{file_name}: Option 'method' is {name!r}, expected text.")
    return name, file, file_name


def _peek(words: list[str], flag: str) -> str | None:
    for place, word in enumerate(words):
        if word == flag:
            return words[place + 1] if place + 1 < len(words) else None
        if word.startswith(flag + "="):
            return word.partition("=")[2]
    return None


def _check_words(positional: list[str], by_flag: bool, name: str) -> None:
    rest = positional if by_flag and positional[:1] != [name] else positional[1:]
    if rest:
        raise SettingsError(f"Unexpected word '{rest[0]}'. For several values repeat the flag: --data a --data b")


def _print_help(card: Card, own: list[Option], everything: bool) -> None:
    print(USAGE.replace("METHOD", card.name, 1))
    print(f"\n{card.name}: {card.summary}")
    print(help_text([replace(option, section=f"Options of {card.name}") for option in own], {}))
    shown = shared_options() if everything else usual_options(card)
    print(help_text([*shown, *OWN], shared_defaults(card)))
    if not everything:
        print(f"\nEvery option: posttrain train {card.name} --help-all")

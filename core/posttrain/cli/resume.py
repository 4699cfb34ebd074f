"""``posttrain resume RUN``: continue a run from its last complete checkpoint."""

from __future__ import annotations

from posttrain.catalogue.defaults import shared_options
from posttrain.cli.flags import help_text, parse
from posttrain.cli.imports import load_api
from posttrain.distributed import launch as launching
from posttrain.distributed.lifeline import end_with_parent
from posttrain.distributed.restart import resumed_settings
from posttrain.distributed.world import quieten
from posttrain.errors import SettingsError
from posttrain.settings.options import Option, cast

_HELP = Option("help", bool, False, "Print this and stop.", "This command")
TAKE_OVER = Option(
    "take_over", bool, False, "Own the run directory though its owner is on another host.", "This command"
)


def run(arguments: list[str]) -> int:
    """Continue the run; flags change options that may change within a run, such as ``--steps``."""
    words = ["--help" if word == "-h" else word for word in arguments]
    positional, flags = parse(words, [*shared_options(), TAKE_OVER, _HELP], "resume")
    if flags.get("help"):
        print("usage: posttrain resume RUN [flags]\n\nThe run's own options hold; flags change some, such as --steps.")
        print(help_text([TAKE_OVER, *shared_options()], {}))
        return 0
    if len(positional) != 1:
        raise SettingsError(f"One run directory is wanted, {len(positional)} were given. Write: posttrain resume RUN")
    take_over = bool(flags.pop("take_over", False))
    kinds = {option.name: option.kind for option in shared_options()}
    changes = {name: cast(name, value, kinds[name]) for name, value in flags.items()}
    settings = resumed_settings(positional[0], changes)
    if launching.wanted(settings.distributed):
        return launching.launch(["resume", *arguments], settings.distributed, positional[0])
    quieten()
    end_with_parent()
    load_api().resume(positional[0], take_over=take_over, **changes)
    return 0

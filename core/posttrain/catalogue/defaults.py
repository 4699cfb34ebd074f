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
    """Return the fields of all sections of ``Settings`` in order, with the first line of their section's docstring."""
    return tuple(
        replace(option, section=str(kind.__doc__).rstrip("."))
        for kind in SECTIONS.values()
        for option in read_options(Path(str(sys.modules[kind.__module__].__file__)), kind.__name__)
    )


def usual_options(card: Card) -> tuple[Option, ...]:
    """Return the options in a method's ``--help``: those that apply to it, without expert ones."""
    online = () if card.online else ("rollouts", "sampling", "generation", "correction")
    needs = [need.partition(" when ")[0] for need in card.needs]
    absent = [*online, *(section for section in ("reference", "teacher") if section not in needs)]
    hidden = EXPERT | {name for section in absent for name in names_of(section)}
    return tuple(option for option in shared_options() if option.name not in hidden)


def method_options(card: Card) -> list[Option]:
    """Read the fields of the method's ``Config`` from its source. Raises MethodError for a name of a shared option."""
    assert card.path is not None  # only cards of the catalogue have none, and those are not installed
    options = read_options(card.path.parent / "__init__.py")
    shared = {option.name for option in shared_options()}
    for option in options:
        if option.name in shared:
            raise MethodError(f"Method '{card.name}' has an option '{option.name}', which every run has. Rename it.")
    return options


def split_modifier(text: str) -> tuple[str, dict[str, str]]:
    """Split a modifier NAME or NAME:OPTION=VALUE,OPTION=VALUE into its name (or folder) and options."""
    found = re.fullmatch(r"(.+?)(?::([\w-]+=.*))?", text, re.DOTALL)
    if found is None:
        raise SettingsError(f"Modifier {text!r} has no name. Write NAME or NAME:OPTION=VALUE.")
    items = re.split(r",(?=\s*[\w-]+=)", found[2]) if found[2] else []
    pairs = [item.strip().partition("=") for item in items]
    return found[1], {key.replace("-", "_"): value for key, _, value in pairs}


def shared_defaults(card: Card) -> dict[str, Any]:
    """Return the method's defaults of the shared options."""
    return {option.name: option.default for option in shared_options()} | card.defaults


#: Options of other trainers that have another name here, in snake_case.
PEERS = {
    "lr": "learning_rate",
    "per_device_train_batch_size": "micro_batch_size",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "max_steps": "steps",
    "bf16": "autocast",
    "report_to": "track",
    "lr_scheduler_type": "schedule",
    "max_seq_length": "max_length",
    "max_completion_length": "max_new_tokens",
    "num_generations": "group_size",
    "save_steps": "save_every",
    "eval_steps": "eval_every",
    "logging_steps": "log_every",
    "output_dir": "output",
    "model_name_or_path": "model",
    "dataset_name": "data",
    "lora_r": "lora_rank",
    "optim": "optimizer",
    "ref_model": "reference_model",
}


def unknown(key: str, names: Iterable[str], prefix: str = "") -> str:
    """Return the message for an option that does not exist, with its name here where other trainers have one."""
    names, here = list(names), PEERS.get(key.replace("-", "_").lower())
    found = next((name for name in names if name.replace("-", "_") == here), None)
    if found:
        return f"Unknown option '{prefix}{key}'. It is called '{prefix}{found}' here."
    close = get_close_matches(key[:100], names, n=1)
    hint = f" Did you mean '{prefix}{close[0]}'?" if close else ""
    return f"Unknown option '{prefix}{key if len(key) <= 100 else key[:97] + '...'}'.{hint}"

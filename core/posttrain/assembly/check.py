"""Refuse settings that contradict each other, before anything is loaded."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from posttrain.catalogue.cards import Card
from posttrain.errors import DataError, SettingsError
from posttrain.generation.backends import check_generation
from posttrain.models.load import choose_device
from posttrain.runs.observers import load_observer
from posttrain.runs.report.page import library
from posttrain.runs.rules.registry import active_rules
from posttrain.runs.trackers import check_tracker
from posttrain.settings import DistributedSettings, Settings
from posttrain.settings.episodes import EpisodeSettings
from posttrain.settings.values import check_values

if TYPE_CHECKING:
    from posttrain.assembly.objects import InMemory


def check_strategy(name: str, settings: DistributedSettings) -> None:
    """What a strategy cannot do is refused, never left out silently."""
    for option, able in (("tensor_parallel", ("fsdp",)), ("cpu_offload", ("fsdp", "deepspeed"))):
        if getattr(settings, option) not in (1, False) and name not in able:
            raise SettingsError(
                f"--{option.replace('_', '-')} needs --strategy {' or '.join(able)}, and this run's is {name}."
            )


def check_episodes(card: Card, settings: EpisodeSettings, objects: InMemory) -> None:
    """Raise SettingsError for an environment or tools where nothing is sampled."""
    given = settings.environment or objects.environment or settings.tools or objects.tools
    if given and not card.online:
        raise SettingsError(
            f"'{card.name}' learns from data, and an environment or tools answer a model that is sampled from. Leave "
            "them out, or choose an online method: posttrain list-methods --schema prompt"
        )


def check_settings(card: Card, settings: Settings, objects: InMemory) -> None:
    """Raise SettingsError for settings that the method or each other rule out."""
    if not settings.model.model and objects.model is None:
        raise SettingsError("No model was given. Name a folder, a Hub id or a .gguf file: --model MODEL")
    own = settings.episodes.environment is not None or objects.environment is not None  # which may bring rows
    if not settings.data.data and objects.data is None and not own:
        raise SettingsError(f"No data was given. '{card.name}' takes {' or '.join(card.schemas)} rows: --data FILE")
    if objects.model is not None and objects.tokenizer is None:
        raise SettingsError("A model in memory needs its tokenizer: train(..., model=model, tokenizer=tokenizer)")
    if settings.data.streaming and card.online:
        raise SettingsError(
            f"'{card.name}' draws prompts at random and needs all of them at hand. Leave streaming out; the first N "
            "rows alone are read with --limit N."
        )
    if card.online:
        check_generation(settings.generation)
    check_values(settings)
    for name in settings.watch.observers or []:
        load_observer(name)  # one that is absent, broken or not allowed is known before anything is read
    for name in settings.watch.track or []:
        check_tracker(name)
    if settings.watch.report:
        library()  # raises where it is not installed
    settings.check()
    active_rules(settings.watch.rules, settings.watch.rule_options)
    if settings.memory.offload_activations and choose_device(settings.model).type != "cuda":
        raise SettingsError(
            "offload-activations moves them out of a GPU's memory, and this run has none. Leave it out."
        )
    if settings.optim.neftune_alpha and card.online:
        raise SettingsError(
            f"neftune-alpha adds noise to given texts, and '{card.name}' compares the policy with its own samples, "
            "which are made without. Leave it out."
        )
    for name in ("ema_decay", "average_last"):
        if getattr(settings.optim, name) is not None and settings.watch.save_best:
            raise SettingsError(
                f"save-best saves one checkpoint and {name.replace('_', '-')} an average. Leave one of them out."
            )
    if settings.optim.average_last is not None and settings.watch.save_every is None:
        raise SettingsError("average-last averages the checkpoints that --save-every N makes. Add it.")
    evaluated = bool(settings.data.eval_data or settings.data.eval_fraction or objects.eval_data is not None)
    for name in ("save_best", "early_stopping", "eval_every"):
        if getattr(settings.watch, name) and not evaluated:
            raise SettingsError(
                f"{name.replace('_', '-')} needs held-out rows. Add --eval-data FILE or --eval-fraction 0.05."
            )


def check_needed_columns(card: Card, config: Any, rows: Any) -> None:
    """Raise DataError for a row without a column that the card asks for; of streamed rows the first is looked at."""
    for name in card.columns_now(config):
        for origin, row in itertools.islice(rows.located(), 1 if rows.streaming else None):
            if row.get(name) is None:
                raise DataError(
                    f"{origin}: column '{name}' is missing. Method '{card.name}' needs it with these options; where "
                    f"it has another name, add --columns {name}=NAME"
                )

"""Refuse settings that contradict each other, before anything is loaded."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from posttrain.catalogue.cards import Card
from posttrain.errors import DataError, SettingsError
from posttrain.generation.backends import check_generation
from posttrain.models.load import choose_device
from posttrain.runs.observers import load_observer
from posttrain.settings import Settings
from posttrain.settings.values import check_values

if TYPE_CHECKING:
    from posttrain.assembly.objects import InMemory


def check_strategy(name: str, settings: Settings) -> None:
    """What a strategy cannot do is refused, never left out silently."""
    for option, able in (("tensor_parallel", ("fsdp",)), ("cpu_offload", ("fsdp", "deepspeed"))):
        if getattr(settings, option) not in (1, False) and name not in able:
            raise SettingsError(
                f"--{option.replace('_', '-')} needs --strategy {' or '.join(able)}, and this run's is {name}."
            )


def check_settings(card: Card, settings: Settings, objects: InMemory) -> None:
    """Raise SettingsError for settings that the method or each other rule out."""
    if not settings.model and objects.model is None:
        raise SettingsError("No model was given. Name a folder, a Hub id or a .gguf file: --model MODEL")
    if not settings.data and objects.data is None:
        raise SettingsError(f"No data was given. '{card.name}' takes {' or '.join(card.schemas)} rows: --data FILE")
    if objects.model is not None and objects.tokenizer is None:
        raise SettingsError("A model in memory needs its tokenizer: train(..., model=model, tokenizer=tokenizer)")
    if settings.streaming and card.online:
        raise SettingsError(
            f"'{card.name}' draws prompts at random and needs all of them at hand. Leave streaming out; the first N "
            "rows alone are read with --limit N."
        )
    if card.online:
        check_generation(settings)
    check_values(settings)
    for name in settings.observers or []:
        load_observer(name)  # one that is absent, broken or not allowed is known before anything is read
    checks = {
        "batch-size": settings.batch_size >= 1,
        "steps": settings.steps is None or settings.steps >= 1,
        "epochs": settings.epochs > 0,
        "micro-batch-size": settings.micro_batch_size is None or settings.micro_batch_size >= 1,
        "head-chunk-tokens": settings.head_chunk_tokens is None or settings.head_chunk_tokens >= 1,
        "learning-rate": settings.learning_rate >= 0,
        "max-length": settings.max_length is None or settings.max_length >= 2,
        "reference-every": settings.reference_every is None or settings.reference_every >= 1,
        "group-size": not card.online or settings.group_size >= 1,
        "save-total": settings.save_total >= 1,
        "max-staleness": settings.max_staleness >= 0,
    }
    for name, fine in checks.items():
        if not fine:
            raise SettingsError(f"{name} is {getattr(settings, name.replace('-', '_'))}, expected a larger number.")
    if not 0 <= settings.eval_fraction < 1:
        raise SettingsError(f"eval-fraction is {settings.eval_fraction}, expected a number from 0 to below 1.")
    if settings.offload_activations and choose_device(settings).type != "cuda":
        raise SettingsError(
            "offload-activations moves them out of a GPU's memory, and this run has none. Leave it out."
        )
    if settings.reference_every is not None and settings.reference_model is not None:
        raise SettingsError(
            f"The reference is '{settings.reference_model}' and also follows the policy every "
            f"{settings.reference_every} steps. Leave out --reference-model, or set reference-every to none."
        )
    if not 0 < settings.reference_rate <= 1:
        raise SettingsError(f"reference-rate is {settings.reference_rate}, expected a number above 0 and up to 1.")
    evaluated = bool(settings.eval_data or settings.eval_fraction or objects.eval_data is not None)
    for name in ("save_best", "early_stopping", "eval_every"):
        if getattr(settings, name) and not evaluated:
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

"""Learning rates over the steps of a run: transformers' schedules by their own names."""

from __future__ import annotations

import functools
import math
import warnings
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from posttrain.errors import SettingsError, first_line

if TYPE_CHECKING:
    from posttrain.settings import OptimSettings

#: Share of the steps in which warmup_stable_decay decays, by default.
DECAY_SHARE = 0.2


def build_schedule(
    optimizer: torch.optim.Optimizer, settings: OptimSettings, total: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Build a schedule of ``total`` steps for every group of ``optimizer``. Raises SettingsError for bad options."""
    warmup = math.ceil(settings.warmup_ratio * total) if settings.warmup_ratio else settings.warmup_steps
    name, options = _named(settings, warmup, total)
    options |= {key: _number(value) for key, value in (settings.schedule_options or {}).items()}
    if name in _COMMON and not options:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, functools.partial(_COMMON[name], warmup, total))
    from transformers import get_scheduler  # imports peft and torch's compiler: more than a second

    needs_warmup = name != "constant"
    try:
        schedule: Any = get_scheduler(
            name,
            optimizer,
            num_warmup_steps=warmup if needs_warmup else None,
            num_training_steps=total,
            scheduler_specific_kwargs=options,
        )
    except (TypeError, ValueError) as error:
        said = first_line(error)
        raise SettingsError(f"schedule-options do not fit schedule {settings.schedule}: {said}") from None
    return schedule


def advance(schedule: torch.optim.lr_scheduler.LambdaLR, applied: bool) -> None:
    """Move on to the learning rate of the next step, also after a step whose update was not ``applied``.

    Torch warns where a schedule moves before the optimiser does, as it must when the very first step is skipped.
    """
    with warnings.catch_warnings() if not applied else nullcontext():
        if not applied:
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        schedule.step()


def _constant(warmup: int, total: int, step: int) -> float:
    return 1.0


def _constant_with_warmup(warmup: int, total: int, step: int) -> float:
    return step / warmup if step < warmup else 1.0


def _linear(warmup: int, total: int, step: int) -> float:
    return step / warmup if step < warmup else max(0.0, (total - step) / max(1, total - warmup))


def _cosine(warmup: int, total: int, step: int) -> float:
    if step < warmup:
        return step / warmup
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((step - warmup) / max(1, total - warmup)))))


#: Common schedules, as factors of the learning rate: the same numbers as transformers' without its import.
_COMMON = {
    "constant": _constant,
    "constant_with_warmup": _constant_with_warmup,
    "linear": _linear,
    "cosine": _cosine,
}


def _named(settings: OptimSettings, warmup: int, total: int) -> tuple[str, dict[str, Any]]:
    """Return transformers' name of the schedule, and its arguments."""
    name, floor = settings.schedule, settings.min_learning_rate
    share = floor / settings.learning_rate if floor else 0.0
    if name == "constant" and warmup:
        return "constant_with_warmup", {}
    if name == "warmup_stable_decay":
        asked = (settings.schedule_options or {}).get("num_decay_steps")
        decay = int(asked) if asked is not None else math.ceil(DECAY_SHARE * total)
        return name, {"num_decay_steps": min(decay, total - warmup), "min_lr_ratio": share}
    if name in ("cosine", "cosine_with_min_lr") and floor:
        return "cosine_with_min_lr", {"min_lr_rate": share}
    if name == "polynomial" or (name == "linear" and floor):
        return "polynomial", {"lr_end": floor}
    return name, {}


def _number(text: str) -> Any:
    """Parse an option's value as a number, if it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text

"""Learning rates over the steps of a run: transformers' own schedules by their own names."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import torch

from posttrain.errors import SettingsError

if TYPE_CHECKING:
    from posttrain.settings import OptimSettings

#: Share of the steps over which warmup_stable_decay falls, where no number of steps is given.
DECAY_SHARE = 0.2


def build_schedule(
    optimizer: torch.optim.Optimizer, settings: OptimSettings, total: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """A schedule of ``total`` steps for every group of ``optimizer``. Raises SettingsError for options it lacks."""
    warmup = math.ceil(settings.warmup_ratio * total) if settings.warmup_ratio else settings.warmup_steps
    name, options = _named(settings, warmup, total)
    options |= {key: _number(value) for key, value in (settings.schedule_options or {}).items()}
    if name in _COMMON and not options:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, functools.partial(_COMMON[name], warmup, total))
    from transformers import get_scheduler  # imports peft, and with it torch's compiler: more than a second

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
        said = str(error).splitlines()[0]
        raise SettingsError(f"schedule-options do not fit schedule {settings.schedule}: {said}") from None
    return schedule


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


#: Schedules of most runs, as shares of the learning rate: the same numbers as transformers' without its import.
_COMMON = {
    "constant": _constant,
    "constant_with_warmup": _constant_with_warmup,
    "linear": _linear,
    "cosine": _cosine,
}


def _named(settings: OptimSettings, warmup: int, total: int) -> tuple[str, dict[str, Any]]:
    """transformers' name of the schedule, and what it is given."""
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
    """A value of an option as a number, if it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text

"""Checks of values that an option's type allows but no run can have."""

from __future__ import annotations

import math
from typing import Any

from posttrain.errors import SettingsError, short

#: Options for which an infinite value means no limit.
_UNBOUNDED = ("max_grad_norm", "correction_high")
#: Options that may be empty, meaning their default or no system prompt.
_MAY_BE_EMPTY = ("model", "output", "system_prompt")
#: Lower bound and exclusive upper bound of options.
_RANGES = {
    "adam_beta1": (0.0, 1.0),
    "adam_beta2": (0.0, 1.0),
    "adam_epsilon": (0.0, math.inf),
    "reward_timeout": (0.0, 1e8),
    "generation_patience": (0.0, 1e8),
}


def refuse_empty(name: str, text: Any, value: Any = "") -> None:
    """Raise SettingsError for an empty ``text``, which is the ``value`` of an option or a part of it."""
    if text == "":
        raise SettingsError(f"{name} is {short(value)}, which names nothing. Leave it out, or give it a value.")


def check_values(settings: dict[str, Any]) -> None:
    """Raise SettingsError for numbers that are not finite, empty texts, and values outside of ``_RANGES``."""
    for option, value in settings.items():
        name = option.replace("_", "-")
        if isinstance(value, float) and not math.isfinite(value) and option not in _UNBOUNDED:
            raise SettingsError(f"{name} is {value}, expected a finite number.")
        texts = value if isinstance(value, list) else [value]
        if option not in _MAY_BE_EMPTY:
            for text in texts:
                refuse_empty(name, text, value)
        if any(isinstance(text, str) and "\0" in text for text in texts):
            raise SettingsError(f"{name} is {short(value)}, which holds a null character.")
    for option, (least, bound) in _RANGES.items():
        value = settings[option]
        if not least <= value < bound:
            below = f" to below {bound:g}" if math.isfinite(bound) else " upwards"
            raise SettingsError(f"{option.replace('_', '-')} is {value:g}, expected a number from {least:g}{below}.")

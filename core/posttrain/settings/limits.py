"""Bounds of option values."""

from __future__ import annotations

from posttrain.errors import SettingsError


def at_least(name: str, value: float | None, least: float) -> None:
    """Raise SettingsError where ``value`` is given and below ``least``."""
    if value is not None and value < least:
        raise SettingsError(f"{name} is {value}, expected a larger number.")

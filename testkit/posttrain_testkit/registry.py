"""The list of checks: definition of a check, the methods it applies to, and its failure.

A check is a small function ``check_<property>(subject) -> None`` that raises ``CheckFailed``. Nothing here imports
torch; the groups "loss" and "training" are imported on demand.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from posttrain.catalogue.cards import Card
from posttrain.errors import PosttrainError, SettingsError

if TYPE_CHECKING:
    from posttrain_testkit.subject import Subject

#: Group -> the modules that register its checks, in the order in which they run.
GROUPS: dict[str, tuple[str, ...]] = {
    "static": ("static", "source"),
    "loss": ("loss", "metrics", "invariance", "degenerate", "advantages"),
    "training": ("training",),
}


class CheckFailed(PosttrainError):
    """A method lacks a property. ``what`` happened, with numbers; ``cause`` is the usual cause."""

    exit_code = 1

    def __init__(self, what: str, cause: str):
        super().__init__(f"{what} {cause}")
        self.what = what
        self.cause = cause


@dataclass(frozen=True)
class Check:
    """One property. ``applies`` decides by the card whether a method must have it."""

    name: str
    group: str
    function: Callable[[Subject], None]
    applies: Callable[[Card], bool]

    @property
    def summary(self) -> str:
        """First line of the check's docstring."""
        return (self.function.__doc__ or "").strip().splitlines()[0]


_CHECKS: dict[str, Check] = {}


def always(card: Card) -> bool:
    """Accept every method."""
    return True


def online(card: Card) -> bool:
    """Accept methods that generate while they train."""
    return card.online


def uses_reference(card: Card) -> bool:
    """Accept methods that may compare the policy with a reference."""
    return any(need.partition(" ")[0] == "reference" for need in card.needs)


def check(
    group: str, applies: Callable[[Card], bool] = always
) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Register a function as a check of ``group`` for the methods whose card ``applies`` accepts."""

    def register(function: Callable[[Subject], None]) -> Callable[[Subject], None]:
        _CHECKS[function.__name__] = Check(function.__name__, group, function, applies)
        return function

    return register


def all_checks(groups: Iterable[str] = tuple(GROUPS)) -> list[Check]:
    """Return every check of the groups, in the order in which they run. Imports torch for "loss" and "training"."""
    wanted = list(groups)
    for group in wanted:
        if group not in GROUPS:
            raise SettingsError(f"No group of checks is called '{group}'. Groups: {', '.join(GROUPS)}.")
        for module in GROUPS[group]:
            importlib.import_module(f"posttrain_testkit.checks.{module}")
    # A module that another one imported first would otherwise put its checks before those of modules listed earlier.
    home = {
        f"posttrain_testkit.checks.{module}": place for names in GROUPS.values() for place, module in enumerate(names)
    }
    ordered = sorted(_CHECKS.values(), key=lambda one: home[one.function.__module__])  # stable: as written in each file
    return [one for group in wanted for one in ordered if one.group == group]


def find_check(name: str) -> Check:
    """Return the check of that name, with or without ``check_``. Raises SettingsError with a close match."""
    full = name if name.startswith("check_") else f"check_{name}"
    full = full.replace("-", "_")
    if full not in _CHECKS:  # the static group needs no torch, so it is tried before the others
        all_checks(("static",))
    if full not in _CHECKS:
        all_checks()
    if full not in _CHECKS:
        close = get_close_matches(full, _CHECKS, 1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise SettingsError(f"No check is called '{name}'.{hint} All checks: posttrain check --list")
    return _CHECKS[full]

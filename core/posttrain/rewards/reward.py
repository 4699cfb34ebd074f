"""A loaded reward: a name, a weight, a function and the options bound to it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from posttrain.errors import RewardError
from posttrain.rewards.guard import LIMIT
from posttrain.rewards.process import Own

#: Arguments that every reward may name; all others are columns of the data.
STANDARD = ("prompts", "completions")


@dataclass
class Reward:
    """A reward of a run. ``function(prompts, completions, **columns)`` returns a score or None per completion.

    Or ``(scores, columns)``: columns of the completions by name, such as ``feedback``, that a method may read.
    """

    name: str
    weight: float
    function: Callable[..., Any]
    async_: bool
    """Whether its calls must be awaited."""
    limit: float | None = LIMIT
    """Time limit of a call in seconds; None for no limit."""
    own: Own = field(default_factory=Own)
    """State of the process that it keeps."""

    def arguments(self, available: dict[str, list[Any]]) -> tuple[list[Any], dict[str, Any]]:
        """Select positional and named arguments from ``available``: only those in the function's signature.

        Raises RewardError where it needs something that is neither available nor an option.
        """
        positional: list[Any] = []
        named: dict[str, Any] = {}
        parameters = inspect.signature(self.function).parameters.values()
        for parameter in parameters:
            if parameter.kind is parameter.VAR_KEYWORD:
                taken = {p.name for p in parameters}
                named |= {name: value for name, value in available.items() if name not in taken}
            elif parameter.kind is parameter.VAR_POSITIONAL:
                continue
            elif parameter.name in available and not self._is_option(parameter.name):
                if parameter.kind is parameter.POSITIONAL_ONLY:
                    positional.append(available[parameter.name])
                else:
                    named[parameter.name] = available[parameter.name]
            elif parameter.default is parameter.empty:
                raise RewardError(self._missing(parameter.name, available))
        return positional, named

    def _is_option(self, name: str) -> bool:
        """Whether the user gave ``name`` as an option, which precedes a column of that name."""
        return name in getattr(self.function, "keywords", {})  # bound by functools.partial

    def _missing(self, name: str, available: Iterable[str]) -> str:
        columns = ", ".join(column for column in available if column not in STANDARD) or "none"
        return (
            f"Reward '{self.name}' needs '{name}', which is neither a column of the data (columns: {columns}) nor "
            f"given as an option. Rename a column with --columns {name}=COLUMN, or give the option with "
            f"--reward-options {self.name}.{name}=VALUE."
        )


def is_async(function: Callable[..., Any]) -> bool:
    """Whether ``function``, an object with ``__call__`` or a partial of either, must be awaited."""
    while (wrapped := getattr(function, "func", None)) is not None:
        function = wrapped
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004 - asks for the method, not whether it can be called


def check_columns(rewards: list[Reward], columns: Iterable[str]) -> None:
    """Raise RewardError if a reward needs something that data with these ``columns`` does not have."""
    available: dict[str, list[Any]] = {name: [] for name in (*STANDARD, *columns)}
    for reward in rewards:
        reward.arguments(available)

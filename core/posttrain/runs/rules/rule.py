"""Definition of a rule, its input, and its finding."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Line = dict[str, Any]


@dataclass(frozen=True)
class Threshold:
    """A number that decides, and the reason for its value; ``--rule-options CODE.NAME=VALUE`` changes it."""

    value: float
    reason: str


@dataclass(frozen=True)
class Finding:
    """Finding of a rule in a step: a sentence, the numbers behind it, and what to change first."""

    message: str
    evidence: dict[str, Any] = field(default_factory=dict)
    suggestion: str = ""


@dataclass
class RunView:
    """Input of a rule: the lines of metrics.jsonl up to a step, the evaluations, and run.json."""

    lines: list[Line]
    """One line a step, the newest last; never empty."""
    plan: dict[str, Any] = field(default_factory=dict)
    """The content of run.json: settings, options, data, parameters, hardware, total_steps."""
    evaluations: list[Line] = field(default_factory=list)
    """One line an evaluation, with step 0 before the first step; names have the prefix ``eval_``."""
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Lowest and highest usual value of metrics, from the method's card."""
    details: dict[str, Any] = field(default_factory=dict)
    """Measurements of the model in this step that are in no file, such as tensors that did not move."""
    limits: dict[str, float] = field(default_factory=dict)
    """Thresholds of the current rule."""

    @property
    def line(self) -> Line:
        """The newest line."""
        return self.lines[-1]

    @property
    def step(self) -> int:
        """The newest step, from 1."""
        return int(self.line["step"])

    @property
    def settings(self) -> dict[str, Any]:
        """Every shared option of the run by name."""
        return self.plan.get("settings", {})

    def last(self, name: str, count: int) -> list[float]:
        """Return the newest ``count`` values of a metric, oldest first; fewer where there are no more."""
        return _collected(reversed(self.lines), name, count)[::-1]

    def first(self, name: str, count: int) -> list[float]:
        """Return the first ``count`` values of a metric."""
        return _collected(iter(self.lines), name, count)

    def both_ends(self, name: str) -> tuple[list[float], list[float]] | None:
        """Return the first and newest ``steps`` values of a metric; None before the run has that many at either end."""
        count = int(self.limits["steps"])
        last = self.last(name, count)
        return None if len(self.lines) < 2 * count or len(last) < count else (self.first(name, count), last)

    @property
    def compares_answers(self) -> bool:
        """Whether the method learns from reward differences between answers to one prompt; true where unknown.

        Of single answers the method's own advantages tell: those of groups are 0 then.
        """
        needs = self.plan.get("card", {}).get("needs")
        rewarded = needs is None or any(str(need).startswith(("rewards", "preferences")) for need in needs)
        several = int(self.settings.get("group_size") or 2) > 1 or self.line.get("advantage_size") == 0
        return rewarded and several and not self.line.get("advantage_size")

    def has_improved(self) -> bool:
        """Tell whether the reward is clearly above that of the first steps: then less spread or entropy is no fault."""
        first, last = self.first("reward", 10), self.last("reward", 10)
        if len(last) < 2 or len(self.lines) < 3:
            return False
        spread = mean(self.first("reward_std", 10) or [0.0])
        return mean(last) > mean(first) + max(0.1 * spread, 1e-9)


Check = Callable[[RunView], Finding | None]


@dataclass(frozen=True)
class Rule:
    """A check for one fault of runs. ``check`` is a pure function of its view."""

    code: str
    """Name in alerts and in ``--rules``."""
    summary: str
    """When it raises an alert, in one sentence."""
    check: Check
    reads: tuple[str, ...] = ()
    """Metrics that the newest line must have; without them the rule is skipped."""
    thresholds: dict[str, Threshold] = field(default_factory=dict)
    every: int = 1
    """Steps between two checks; rules over long histories need not check each step."""


def rule(
    code: str, summary: str, reads: tuple[str, ...] = (), every: int = 1, **thresholds: Threshold
) -> Callable[[Check], Rule]:
    """Make a rule from a function."""
    return lambda check: Rule(code, summary, check, reads, thresholds, every=every)


def mean(values: Iterable[float]) -> float:
    """Return the mean of some numbers; 0 for none."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


def median(values: Iterable[float]) -> float:
    """Return the middle one of some numbers, the upper of two; 0 for none."""
    listed = sorted(values)
    return listed[len(listed) // 2] if listed else 0.0


def _collected(lines: Iterable[Line], name: str, count: int) -> list[float]:
    """Collect values in the order of ``lines``; those that are no numbers (null in the file) do not count."""
    found: list[float] = []
    for line in lines:
        value = line.get(name)
        if value is not None and value == value:
            found.append(value)
            if len(found) == count:
                break
    return found

"""Meaning of a run's metrics: topic, good direction, unit, and the method's own words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from posttrain.catalogue.discovery import locate
from posttrain.errors import PosttrainError
from posttrain.settings.options import docstring

HIGHER, LOWER = "higher", "lower"
#: Topics in the order of a reader's interest.
TOPICS = (
    *("loss", "reward", "preference", "divergence", "entropy", "lengths", "method", "gradient", "learning rate"),
    *("clipping", "sampler", "experts", "throughput", "memory", "prompts"),
)
#: Topics about the machine, not about learning.
MACHINE = {"throughput", "memory", "prompts"}
#: Name (a full match), topic, good direction, unit. The first match holds.
_KNOWN = (
    (r"step", "", "", ""),
    (r"loss", "loss", LOWER, ""),
    (r"(.*_)?nll(_.*)?", "loss", "", "nats"),
    (r"reward_std|zero_spread_share|win_rate.*", "reward", "", ""),
    (r"reward_(chosen|rejected|good|bad|best|worst)", "preference", "", ""),
    (r"(.*_)?seconds", "throughput", LOWER, "s"),
    (r"reward(_.*)?", "reward", HIGHER, ""),
    (r"margin|(rank_)?accuracy|correct", "preference", HIGHER, ""),
    (r"(logps?|score)_.*", "preference", "", ""),
    (r"kl|.*_kl|kl_(chosen|rejected)|divergence|drift|distance", "divergence", "", "nats"),
    (r"router_loss", "experts", LOWER, ""),
    (r"router_entropy", "experts", "", "nats"),
    (r"router_.*", "experts", "", ""),
    (r"(.*_)?entropy", "entropy", "", "nats"),
    (r"completion_length", "lengths", "", "tokens"),
    (r"truncated_share", "lengths", LOWER, ""),
    (r"tokens_per_second", "throughput", HIGHER, "tokens/s"),
    (r"tokens", "throughput", "", "tokens"),
    (r"peak_memory_mb", "memory", LOWER, "MB"),
    (r"learning_rate", "learning rate", "", ""),
    (r"grad_norm", "gradient", "", ""),
    (r"clip_.*|ratio|importance|.*clipped", "clipping", "", ""),
    (r"sampler_.*", "sampler", "", ""),
    (r"prompts_.*|rollouts_.*|generation_rounds", "prompts", "", ""),
)
#: Metrics that a reader checks first, in this order; the method's other metrics follow.
_KEY = (
    *(
        "reward",
        "accuracy",
        "margin",
        "kl",
        "entropy",
        "completion_length",
        "eval_loss",
        "eval_reward",
        "eval_accuracy",
    ),
)
_SECTION = re.compile(r"^Metrics:\s*\n((?:(?:-|[ \t]+\S).*\n?)*)", re.MULTILINE)


@dataclass(frozen=True)
class Metric:
    """One metric with its topic, direction and unit."""

    name: str
    topic: str
    better: str
    """"higher", "lower", or empty where neither direction is good by itself."""
    unit: str


def describe_metric(name: str, online: bool = False) -> Metric:
    """Describe a metric by its name. The loss of an online method has no good direction."""
    plain = name.removeprefix("eval_")
    for pattern, topic, better, unit in _KNOWN:
        if re.fullmatch(pattern, plain):
            return Metric(name, topic, "" if online and topic == "loss" else better, unit)
    return Metric(name, "method", "", "")


def is_online(names: Iterable[str]) -> bool:
    """Tell from metric names whether a run samples completions."""
    return "completion_length" in names


def key_metrics(line: dict[str, Any], at_most: int = 4) -> list[str]:
    """Choose the metrics that are shown beside a step's loss: the known ones, then the method's own."""
    own = [name for name in line if describe_metric(name).topic == "method"]
    names = [name for name in (*_KEY, *own) if is_number(line.get(name))]
    return names[:at_most]


def is_number(value: Any) -> bool:
    """Tell whether a metric's value can be drawn; a number that was not finite is None in the file."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def metric_notes(method: str) -> dict[str, str]:
    """Read a method's notes on its metrics, by name, without importing it; empty where it is not installed."""
    try:
        card = locate(method).card
        text = docstring(card.path.parent / "__init__.py") if card is not None and card.path is not None else ""
    except (PosttrainError, OSError):
        return {}
    return parse_notes(text)


def parse_notes(text: str) -> dict[str, str]:
    """Parse the section "Metrics:" of a method's docstring: ``- name, other: words`` gives an entry for each name."""
    section = _SECTION.search(text + "\n")
    notes: dict[str, str] = {}
    for item in re.split(r"(?m)^- ", section.group(1) if section else "")[1:]:
        names, _, words = " ".join(item.split()).partition(": ")
        notes |= {name.strip(): words for name in names.split(",")}
    return notes


def format_value(value: Any) -> str:
    """Format a number as short as it can be read: four digits, large ones in thousands."""
    if not is_number(value):
        return "-"
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.2f}M"
    if size >= 1e4:
        return f"{value / 1e3:.1f}k"
    if size >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1e}" if 0 < size < 1e-3 else f"{value:.3f}"

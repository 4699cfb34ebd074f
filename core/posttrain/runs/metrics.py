"""Say what the metrics of a run mean to a reader: topic, direction that is good, unit, and the method's own words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from posttrain.catalogue.discovery import locate
from posttrain.errors import PosttrainError
from posttrain.settings.options import docstring

HIGHER, LOWER = "higher", "lower"
#: Topics in the order in which a reader wants them.
TOPICS = (
    *("loss", "reward", "preference", "divergence", "entropy", "lengths", "method", "gradient", "learning rate"),
    *("clipping", "sampler", "throughput", "memory", "prompts"),
)
#: Topics that are about the machine, not about what is learnt.
MACHINE = {"throughput", "memory", "prompts"}
#: Name (a whole match), topic, direction that is good, unit. The first that fits holds.
_KNOWN = (
    (r"step", "", "", ""),
    (r"loss", "loss", LOWER, ""),
    (r"(.*_)?nll(_.*)?", "loss", "", "nats"),
    (r"reward_std|zero_spread_share|win_rate.*", "reward", "", ""),
    (r"reward_(chosen|rejected|good|bad|best|worst)", "preference", "", ""),
    (r"reward_seconds|generation_seconds|weights_seconds|seconds", "throughput", LOWER, "s"),
    (r"reward(_.*)?", "reward", HIGHER, ""),
    (r"margin|(rank_)?accuracy|correct", "preference", HIGHER, ""),
    (r"(logps?|score)_.*", "preference", "", ""),
    (r"kl|.*_kl|kl_(chosen|rejected)|divergence|drift|distance", "divergence", "", "nats"),
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
#: Metrics that a reader looks at first, in this order; what else the method logs comes after them.
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
    """One metric as a reader meets it."""

    name: str
    topic: str
    better: str
    """"higher", "lower", or empty where neither is good by itself."""
    unit: str


def describe_metric(name: str, online: bool = False) -> Metric:
    """Describe a metric by its name. The loss of an online method has no direction that is good."""
    plain = name.removeprefix("eval_")
    for pattern, topic, better, unit in _KNOWN:
        if re.fullmatch(pattern, plain):
            return Metric(name, topic, "" if online and topic == "loss" else better, unit)
    return Metric(name, "method", "", "")


def is_online(names: Iterable[str]) -> bool:
    """Tell from the names of its metrics whether a run samples completions."""
    return "completion_length" in names


def key_metrics(line: dict[str, Any], at_most: int = 4) -> list[str]:
    """Choose the metrics of a step to show beside its loss: the known ones, then the method's own."""
    own = [name for name in line if describe_metric(name).topic == "method"]
    names = [name for name in (*_KEY, *own) if is_number(line.get(name))]
    return names[:at_most]


def is_number(value: Any) -> bool:
    """Tell whether a value of a line of metrics can be drawn; a number that was not finite is None in the file."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def metric_notes(method: str) -> dict[str, str]:
    """Read what a method says of its metrics, by name, without importing it; nothing where it is not installed."""
    try:
        card = locate(method).card
        text = docstring(card.path.parent / "__init__.py") if card is not None and card.path is not None else ""
    except (PosttrainError, OSError):
        return {}
    return parse_notes(text)


def parse_notes(text: str) -> dict[str, str]:
    """Read the section "Metrics:" of a method's docstring: ``- name, other: words`` becomes an entry for each name."""
    section = _SECTION.search(text + "\n")
    notes: dict[str, str] = {}
    for item in re.split(r"(?m)^- ", section.group(1) if section else "")[1:]:
        names, _, words = " ".join(item.split()).partition(": ")
        notes |= {name.strip(): words for name in names.split(",")}
    return notes


def format_value(value: Any) -> str:
    """Write a number as short as it can be read: four digits, large ones in thousands."""
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

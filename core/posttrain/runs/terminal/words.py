"""Wording of a step, an alert and a completion, the same in every form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from posttrain.runs.conversation import said_in
from posttrain.runs.metrics import HIGHER, LOWER, describe_metric, format_value, is_number, is_online, key_metrics

#: Steps whose mean is compared with a metric to find its direction.
_WINDOW = 20
_ARROWS = {HIGHER: "↑", LOWER: "↓", "": ""}


@dataclass(frozen=True)
class Shown:
    """One metric as shown: ``arrow`` is the good direction, ``going`` its recent direction."""

    name: str
    value: str
    arrow: str
    going: str
    """"good", "bad", or empty where that is unknown."""

    def __str__(self) -> str:
        return f"{self.name}{self.arrow} {self.value}"


def shown_metrics(line: dict[str, Any], history: list[dict[str, Any]]) -> list[Shown]:
    """Choose and format the metrics of a step: the loss, then the method's key metrics."""
    online = is_online(line)
    found = []
    for name in ("loss", *key_metrics(line)):
        better = describe_metric(name, online).better
        value = (
            f"{line[name] + 0.0:.4f}" if name == "loss" and is_number(line.get(name)) else format_value(line.get(name))
        )
        found.append(Shown(name.replace("_", " "), value, _ARROWS[better], _going(name, better, line, history)))
    return found


def _going(name: str, better: str, line: dict[str, Any], history: list[dict[str, Any]]) -> str:
    """Compare the newest quarter of the last steps with those before it."""
    values = [one[name] for one in [*history[-_WINDOW:], line] if is_number(one.get(name))]
    cut = len(values) - len(values) // 4
    if not better or len(values) < 8 or values[:cut] == values[cut:]:
        return ""
    before, now = sum(values[:cut]) / cut, sum(values[cut:]) / (len(values) - cut)
    if now == before:
        return ""
    return "good" if (now > before) == (better == HIGHER) else "bad"


def clock(seconds: float) -> str:
    """Format a span of time: 0:07, 12:30, 3:05:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def alert_words(event: dict[str, Any]) -> str:
    """Format an alert in one line: severity, code, message, suggestion."""
    suggestion = f"  Try: {event['suggestion']}" if event.get("suggestion") else ""
    return f"{event.get('severity', 'warning')} {event.get('code', '')}: {event.get('message', '')}.{suggestion}"


def sample_words(sample: dict[str, Any], at_most: int = 400) -> str:
    """Format a completion with its step and reward; a long one is cut."""
    text = said_in(sample)
    cut = text if len(text) <= at_most else text[: at_most - 1] + "…"
    return f"step {sample.get('step')}, reward {format_value(sample.get('reward'))}: {cut or '(empty)'}"

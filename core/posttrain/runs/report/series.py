"""Curves that are small enough for a page, and charts that group related metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from posttrain.runs.metrics import MACHINE, TOPICS, describe_metric, is_number, is_online

#: Numbers of all curves of a page: about 9 bytes each, so that a page stays below 2 MB.
POINTS = 50_000
#: Metrics without a curve: they only count up.
_LEFT_OUT = {"step", "prompts_issued", "prompts_trained"}
Line = dict[str, Any]


def curves(lines: list[Line], points: int = POINTS) -> dict[str, list[list[float]]]:
    """Return ``[steps, values]`` of each metric; a long one is cut to the extremes of equal stretches.

    ``points`` bounds the numbers of all curves together.
    """
    names = dict.fromkeys(name for line in lines for name, value in line.items() if is_number(value))
    wanted = [name for name in names if name not in _LEFT_OUT]
    each = max(40, points // (2 * max(1, len(wanted))))
    return {name: _thinned(*_values(lines, name), each) for name in wanted}


def _values(lines: list[Line], name: str) -> tuple[list[int], list[float]]:
    found = [(int(line["step"]), float(line[name])) for line in lines if is_number(line.get(name))]
    return [step for step, _ in found], [value for _, value in found]


def _thinned(steps: list[int], values: list[float], points: int) -> list[list[float]]:
    """Keep the lowest and the highest point of each stretch, so that no spike is lost."""
    places: Iterable[int] = range(len(values))
    if len(values) > points:
        width = math.ceil(2 * len(values) / points)
        kept = {0, len(values) - 1}
        for start in range(0, len(values), width):
            stretch = range(start, min(start + width, len(values)))
            kept |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
        places = sorted(kept)
    chosen = list(places)
    return [[steps[i] for i in chosen], [float(f"{values[i]:.5g}") for i in chosen]]


def charts(names: Iterable[str], notes: dict[str, str], several: bool) -> list[dict[str, Any]]:
    """Group metrics into charts, in the order of the topics.

    A chart has ``title``, ``part`` (of the page), ``unit``, ``better``, ``note`` and ``metrics``. A metric and its
    held-out twin (``eval_``) share a chart; of one run alone also the parts of a reward, and pairs such as chosen and
    rejected.
    """
    names = list(names)
    online = is_online(names)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_chart_of(name, several), []).append(name)
    found = []
    for title, members in groups.items():
        members.sort(key=lambda name: (name.startswith("eval_"), name != title))
        first = describe_metric(members[0], online)
        note = " ".join(dict.fromkeys(notes[plain] for name in members if (plain := _plain(name)) in notes))
        chart: dict[str, Any] = {"title": _words(title), "part": "Machine" if first.topic in MACHINE else "Curves"}
        chart |= {"unit": first.unit, "better": first.better, "note": note, "metrics": members}
        found.append((TOPICS.index(first.topic), chart))
    return [chart for _, chart in sorted(found, key=lambda item: item[0])]


def _plain(name: str) -> str:
    return name.removeprefix("eval_")


def _words(title: str) -> str:
    words = title.removesuffix("_mb").replace("_", " ")
    words = re.sub(r"\b(kl|nll)\b", lambda found: found.group().upper(), words)
    return words[:1].upper() + words[1:]


#: Ends of names that one chart shows together.
_PAIRS = ("_chosen", "_rejected", "_good", "_bad", "_best", "_worst", "_low", "_high", "_max", "_min")
_OWN_CHART = {"reward_std", "reward_seconds", "reward"}


def _chart_of(name: str, several: bool) -> str:
    plain = _plain(name)
    if several or plain in _OWN_CHART:
        return plain
    for end in _PAIRS:
        if plain.endswith(end):
            return plain.removesuffix(end)
    if plain.startswith("reward_"):
        return "parts of the reward"
    if plain.endswith("_seconds") or plain == "seconds":
        return "seconds"
    return plain

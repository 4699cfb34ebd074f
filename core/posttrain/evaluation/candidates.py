"""Candidates of a comparison: methods and settings to try."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from posttrain.errors import SettingsError
from posttrain.evaluation.trials import Candidate

#: Schema of the rows -> methods worth trying first, the simplest one before the others; see docs/which-method.md.
SUGGESTED = {
    "prompt-completion": ("sft", "sft-kl", "dft", "gem", "psft"),
    "language-modeling": ("sft", "sft-kl", "gem"),
    "preference": ("dpo", "simpo", "orpo", "ipo", "apo-zero"),
    "unpaired-preference": ("kto", "bco", "una"),
    "ranked": ("pl-dpo", "lire", "pro"),
    "scored": ("rrhf", "real", "info-nca"),
    "stepwise": ("prm-step", "pqm"),
    "forget-retain": ("npo", "simnpo", "grad-diff"),
    "prompt": ("grpo", "rloo", "dapo", "dr-grpo", "gspo"),
}


def read_candidates(words: list[str]) -> list[Candidate]:
    """Parse candidates: ``dpo`` or ``dpo,beta=0.2,learning-rate=1e-5``. Raises SettingsError."""
    found = []
    for word in words:
        method, *pairs = word.split(",")
        options = dict(_pair(pair, word) for pair in pairs)
        found.append(Candidate(method, options))
    return _unlike(found)


def _pair(text: str, word: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise SettingsError(f"Candidate '{word}': '{text}' is no option. Expected METHOD,OPTION=VALUE,...")
    return name.lstrip("-").replace("_", "-"), value


def _unlike(found: list[Candidate]) -> list[Candidate]:
    names = [one.name for one in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SettingsError(f"Candidate '{twice}' is named twice.")
    return found


def widened(candidates: list[Candidate], tries: list[str], draws: int, seed: int) -> list[Candidate]:
    """Combine every candidate with every setting.

    ``tries`` are ``OPTION=A,B,C`` (each value: a grid) or ``OPTION=LOW..HIGH``, of which ``draws`` settings are drawn,
    uniformly on a logarithmic scale where LOW is above 0. Raises SettingsError.
    """
    grids: dict[str, list[str]] = {}
    ranges: dict[str, tuple[float, float]] = {}
    for text in tries:
        name, value = _pair(text, text)
        low, dots, high = value.partition("..")
        if dots:
            ranges[name] = _range(text, low, high)
        else:
            grids[name] = value.split(",")
    if bool(ranges) != bool(draws):
        raise SettingsError(
            f"--draws is {draws} and {len(ranges)} options have a range. Ranges (--try learning-rate=1e-6..1e-4) are "
            "drawn from as often as --draws says; give both or neither."
        )
    settings = [dict(zip(grids, values, strict=True)) for values in itertools.product(*grids.values())]
    if ranges:
        random = np.random.default_rng(seed)
        drawn = [{name: _draw(random, *limits) for name, limits in ranges.items()} for _ in range(draws)]
        settings = [one | other for one in settings for other in drawn]
    return _unlike([Candidate(one.method, one.options | setting) for one in candidates for setting in settings])


def _range(text: str, low: str, high: str) -> tuple[float, float]:
    try:
        limits = float(low), float(high)
    except ValueError:
        limits = math.nan, math.nan
    if not limits[0] < limits[1]:
        raise SettingsError(f"'{text}' is no range, expected OPTION=LOW..HIGH such as learning-rate=1e-6..1e-4.")
    return limits


def _draw(random: Any, low: float, high: float) -> str:
    value = math.exp(random.uniform(math.log(low), math.log(high))) if low > 0 else random.uniform(low, high)
    return f"{value:.6g}"

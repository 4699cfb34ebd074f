"""Rewards from the text alone: ``regex``, ``format``, ``length``, ``exact``."""

from __future__ import annotations

import re
from typing import Any

from posttrain.errors import RewardError, SettingsError

#: One thought, then one answer, nothing around them and no such tag inside them.
_INSIDE = r"(?:(?!</?(?:think|answer)>).)*"
THINK_THEN_ANSWER = rf"<think>{_INSIDE}</think>\s*<answer>{_INSIDE}</answer>"


def regex(completions: list[str], pattern: str) -> list[float]:
    """Return 1 where ``pattern`` occurs anywhere in the completion, else 0. Flags go into the pattern: ``(?is)yes``."""
    compiled = _compile("regex", pattern)
    return [float(compiled.search(completion) is not None) for completion in completions]


def format(completions: list[str], pattern: str = THINK_THEN_ANSWER) -> list[float]:
    """Return 1 where the whole completion, stripped, matches ``pattern``, else 0; ``.`` matches line ends too.

    By default ``<think>...</think><answer>...</answer>``, each once.
    """
    compiled = _compile("format", pattern, re.DOTALL)
    return [float(compiled.fullmatch(completion.strip()) is not None) for completion in completions]


def length(
    completions: list[str],
    target: int | None = None,
    limit: int | None = None,
    unit: str = "tokens",
    tokenizer: Any = None,
) -> list[float]:
    """Return between 0 (good) and -1, to be added to other rewards.

    ``target``: minus the relative distance of the length from it. ``limit``: 0 up to it, then linearly to -1 at twice
    the limit. ``unit`` is tokens (of the policy), words or characters.
    """
    bound = target if limit is None else limit
    if bound is None or (target is not None and limit is not None):
        raise SettingsError(
            f"Reward 'length' has target {target} and limit {limit}, exactly one is needed. "
            "Give it with --reward-options length.limit=200."
        )
    if bound < 1:
        raise SettingsError(
            f"Reward 'length' has {'target' if limit is None else 'limit'} {bound}. It must be 1 or more."
        )
    counts = [_count(completion, unit, tokenizer) for completion in completions]
    if limit is None:
        return [-min(1.0, abs(count - bound) / bound) for count in counts]
    return [-min(1.0, max(0, count - bound) / bound) for count in counts]


def exact(completions: list[str], answer: list[Any]) -> list[float | None]:
    """Return 1 where completion and column ``answer`` are equal, both stripped, else 0; None without an answer."""
    return [
        None if expected is None else float(completion.strip() == str(expected).strip())
        for completion, expected in zip(completions, answer, strict=True)
    ]


def _count(text: str, unit: str, tokenizer: Any) -> int:
    if unit == "characters":
        return len(text)
    if unit == "words":
        return len(text.split())
    if unit != "tokens":
        raise SettingsError(f"Reward 'length' has unit '{unit}'. Units: tokens, words, characters.")
    if tokenizer is None:
        raise RewardError(
            "Reward 'length' counts tokens and has no tokenizer here. Use --reward-options length.unit=words."
        )
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _compile(name: str, pattern: str, flags: int = 0) -> re.Pattern[str]:
    try:
        return re.compile(pattern, flags)
    except re.error as error:
        raise SettingsError(f"Reward '{name}': the pattern {pattern!r} is not a regular expression: {error}.") from None

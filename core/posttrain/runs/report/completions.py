"""Choice of the completions that a page shows: the same prompts at the start, in between and at the end."""

from __future__ import annotations

import json
from typing import Any

from posttrain.errors import short
from posttrain.runs.conversation import said_in
from posttrain.runs.metrics import is_number

#: Bytes of all completions of a page, and characters of one text.
BYTES, LONGEST = 250_000, 2_000
#: Most prompts of a run, and most completions of a prompt.
_PROMPTS, _EACH = 40, 40
Sample = dict[str, Any]


def text_of(prompt: Any) -> str:
    """Return a prompt as text: for a conversation the texts of its messages, one after the other."""
    if isinstance(prompt, list):
        return "\n".join(
            f"{message.get('role', '')}: {message.get('content', '')}"
            for message in prompt
            if isinstance(message, dict)
        )
    return "" if prompt is None else str(prompt)


def chosen_completions(samples: list[Sample], size: int = BYTES) -> list[dict[str, Any]]:
    """Return prompts with their completions over time, those with completions in most steps first.

    Each has ``prompt`` and ``completions``: ``[step, text, reward, parts, finished]``. Of a prompt with many
    completions some are left out evenly, but never the first and the last.
    """
    by_prompt: dict[str, list[Sample]] = {}
    for sample in samples:
        by_prompt.setdefault(text_of(sample.get("prompt")), []).append(sample)
    order = sorted(by_prompt, key=lambda text: -len({sample.get("step") for sample in by_prompt[text]}))
    found: list[dict[str, Any]] = []
    for prompt in order[:_PROMPTS]:
        rows = _rows(by_prompt[prompt], size // 4)
        one = {"prompt": _cut(prompt), "completions": rows}
        size -= _bytes(one)
        if size < 0 and found:
            break
        found.append(one)
    return found


def _rows(samples: list[Sample], size: int) -> list[list[Any]]:
    """Return as many completions as ``size`` bytes hold, at least the first and the last."""
    rows = [_row(sample) for sample in _spread(samples, _EACH)]
    room = max(2, len(rows) * size // max(1, _bytes(rows)))
    return rows if len(rows) <= room else [_row(sample) for sample in _spread(samples, room)]


def _bytes(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode())


def _spread(samples: list[Sample], at_most: int) -> list[Sample]:
    """Keep ``at_most`` samples at equal distances, both ends included."""
    if len(samples) <= at_most:
        return samples
    return [samples[round(i * (len(samples) - 1) / (at_most - 1))] for i in range(at_most)]


def _row(sample: Sample) -> list[Any]:
    parts = sample.get("rewards")
    named = {name: round(v, 4) for name, v in parts.items() if is_number(v)} if isinstance(parts, dict) else {}
    reward: Any = sample.get("reward")
    shown = round(reward, 4) if is_number(reward) else None
    return [sample.get("step"), _cut(said_in(sample)), shown, named, sample.get("finished")]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def readable(value: Any) -> str:
    """Format an option's value for a table."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value) if isinstance(value, str) else short(value, 200)

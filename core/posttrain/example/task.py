"""The demonstration's task: write five digits in ascending order. Problems, demonstrations and the reward."""

from __future__ import annotations

import random

DIGITS = 5


def problems(count: int, seed: int) -> list[dict[str, str]]:
    """Return ``count`` different problems as rows: ``prompt`` ("40216=") and the right ``answer`` ("01246")."""
    numbers = random.Random(seed).sample(range(10**DIGITS), count)
    digits = [f"{number:0{DIGITS}d}" for number in numbers]
    return [{"prompt": f"{text}=", "answer": "".join(sorted(text))} for text in digits]


def demonstrations(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return worked problems, alternately sorted as asked and in descending order."""
    return [
        {"prompt": row["prompt"], "completion": row["answer"] if place % 2 == 0 else row["answer"][::-1]}
        for place, row in enumerate(rows)
    ]


def is_sorted(prompts: list[str], completions: list[str], answer: list[str]) -> list[float]:
    """Return 1 for exactly the right answer, else 0: the verifiable reward. ``answer`` is a column of the data."""
    return [float(completion == right) for completion, right in zip(completions, answer, strict=True)]

"""Prompts and answers of rows, text or messages alike, for methods that rewrite rows in ``posttrain_rows``."""

from __future__ import annotations

from typing import Any

from posttrain.errors import DataError

#: Answers of a model that has forgotten a fact. Short and varied, so that no single phrase is learnt.
REFUSALS = (
    "I do not know.",
    "I am not sure about that.",
    "I have no information on this.",
    "That is not something I can tell you.",
    "I cannot answer this question.",
    "I am afraid I do not know the answer.",
    "This is outside of what I know.",
    "I do not have the answer to that.",
    "Sorry, I have never learnt about this.",
    "I am unable to say.",
    "My knowledge does not cover this.",
    "I would rather not guess: I do not know.",
)


def split(sample: Any) -> tuple[Any, Any]:
    """Return prompt and completion of a sample. Raises DataError for plain text, which has no prompt."""
    if isinstance(sample, dict):
        return sample["prompt"], sample["completion"]
    if isinstance(sample, list):
        return sample[:-1], sample[-1:]
    raise DataError(
        f"The sample {str(sample)[:60]!r} is plain text. This method answers the same prompt otherwise, and needs an "
        'object such as {"prompt": ..., "completion": ...}.'
    )


def answer(prompt: Any, text: str) -> dict[str, Any]:
    """Return a sample that answers ``prompt`` with ``text``, as text or as a message like the prompt."""
    if isinstance(prompt, list):
        return {"prompt": prompt, "completion": [{"role": "assistant", "content": text}]}
    return {"prompt": prompt, "completion": text if not prompt or prompt[-1:].isspace() else f" {text}"}


def refusal(prompt: Any, number: int) -> dict[str, Any]:
    """Return a sample that refuses to answer ``prompt``; ``number`` selects the phrase."""
    return answer(prompt, REFUSALS[number % len(REFUSALS)])

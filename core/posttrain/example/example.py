"""Meaning of the name ``example``: data and models that are made on demand, and options that suit them."""

from __future__ import annotations

from typing import Any

from posttrain.catalogue.cards import Card

DATA = "example"
#: Half of its answers are right, the other half sorted the wrong way round.
MODEL = "example"
#: Nearly all of its answers are right.
TEACHER = "example-teacher"
MODELS = (MODEL, TEACHER)
REWARD = "example"
#: A model of 0.1 million parameters needs larger steps than the methods' defaults.
LEARNING_RATE = 3e-4
#: The longest answer is five digits and the end.
MAX_NEW_TOKENS = 8
#: Examples, or prompts, a step; larger batches would see the few rows only a few times.
BATCH_SIZE = 32


def command(method: str) -> str:
    """Return the command that trains ``method``, a name or a folder, on the example; it needs no other flag."""
    return f"posttrain train {method} --model {MODEL} --data {DATA}"


def is_data(sources: Any) -> bool:
    """Whether all ``sources``, as in ``Settings.data``, are the example, with or without a weight."""
    return bool(sources) and all(str(source).partition("=")[0] == DATA for source in sources)


def example_defaults(card: Card, options: dict[str, Any]) -> dict[str, Any]:
    """Return shared options with another default for the example model, and on the example data.

    ``options`` are those that the method's card or the user sets. Of the card's only the length of the steps is
    replaced. Empty for every other model.
    """
    if options.get("model") != MODEL:
        return {}
    found: dict[str, Any] = {"learning_rate": LEARNING_RATE}
    if is_data(options.get("data")):
        found["batch_size"] = min(BATCH_SIZE, options.get("batch_size") or BATCH_SIZE)
        found["max_new_tokens"] = MAX_NEW_TOKENS
    needs = [need.partition(" when ")[0] for need in card.needs]
    if "teacher" in needs and options.get("teacher_model") is None:
        found["teacher_model"] = TEACHER
    return found

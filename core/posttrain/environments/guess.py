"""A number to guess: turns without tools."""

from __future__ import annotations

import random
import re
from typing import Any

from posttrain.environments.environment import Environment, Message, Observation


class Guess(Environment):
    """A number from 1 to ``highest``; each guess is answered with higher or lower, and a right one is worth 1."""

    def __init__(self, highest: int = 20, step_cost: float = 0.05):
        self.highest, self.step_cost = highest, step_cost
        self._number = 0
        self._turns = 0

    @classmethod
    def rows(cls, size: int = 500, seed: int = 0) -> list[dict[str, Any]]:
        """Return the question, with the number's relative place in the range."""
        dice = random.Random(seed)
        text = "I think of a number. Guess it: answer with a number alone, and I say whether mine is higher or lower."
        return [{"prompt": [{"role": "user", "content": text}], "place": dice.random()} for _ in range(size)]

    def reset(self, row: dict[str, Any], seed: int) -> str:
        """Choose the row's number and name the range."""
        self._number = 1 + int(float(row["place"]) * self.highest)
        self._turns = 0
        return f"It is from 1 to {self.highest}."

    def step(self, message: Message) -> Observation:
        """Answer a guess."""
        self._turns += 1
        found = re.search(r"-?\d+", str(message.get("content", "")))
        if found is None:
            return Observation("That is no number. Guess a number.", -self.step_cost)
        guess = int(found[0])
        if guess == self._number:
            return Observation("Right.", 1.0, done=True)
        return Observation("Higher." if guess < self._number else "Lower.", -self.step_cost)

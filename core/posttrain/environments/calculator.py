"""Arithmetic with two tools."""

from __future__ import annotations

import random
import re
from typing import Any

from posttrain.environments.environment import Environment, Message
from posttrain.environments.tools import tool

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class Calculator(Environment):
    """Two tools, ``add`` and ``multiply``; worth 1 for the right answer, a part of it for calling the right tool."""

    def __init__(self, tool_reward: float = 0.5):
        self.tool_reward = tool_reward
        self._row: dict[str, Any] = {}
        self._called: list[tuple[str, float]] = []

    @classmethod
    def rows(cls, size: int = 500, seed: int = 0) -> list[dict[str, Any]]:
        """Return questions about two numbers of three digits: ``prompt``, ``answer``, and the right ``tool``."""
        dice = random.Random(seed)
        rows = []
        for _ in range(size):
            first, second, adds = dice.randint(100, 999), dice.randint(100, 999), dice.random() < 0.5
            text = f"What is {first} {'plus' if adds else 'times'} {second}?"
            answer = first + second if adds else first * second
            rows.append({
                "prompt": [{"role": "user", "content": text}],
                "answer": str(answer),
                "tool": "add" if adds else "multiply",
            })  # fmt: skip
        return rows

    def reset(self, row: dict[str, Any], seed: int) -> None:
        """Store the row."""
        self._row, self._called = row, []

    @tool
    def add(self, a: float, b: float) -> float:
        """Add two numbers.

        Args:
            a: The first number.
            b: The second number.
        """
        return self._note("add", a + b)

    @tool
    def multiply(self, a: float, b: float) -> float:
        """Multiply two numbers.

        Args:
            a: The first number.
            b: The second number.
        """
        return self._note("multiply", a * b)

    def reward(self, message: Message) -> float:
        """Score the episode: ``tool_reward`` for the right tool and result, the rest for the final answer."""
        right = float(self._row["answer"])
        used = (self._row["tool"], right) in self._called
        numbers = _NUMBER.findall(str(message.get("content", "")).replace(",", ""))
        answered = bool(numbers) and float(numbers[-1]) == right
        return self.tool_reward * used + (1 - self.tool_reward) * answered

    def _note(self, name: str, value: float) -> float:
        value = int(value) if float(value).is_integer() else value
        self._called.append((name, float(value)))
        return value

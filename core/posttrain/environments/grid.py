"""A grid of letters to walk through: text in, text out, several turns."""

from __future__ import annotations

import random
import re
from typing import Any

from posttrain.environments.environment import Environment, Message, Observation

_MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


class Grid(Environment):
    """Walk from A to G; walls are #. Worth 1 at the goal, less ``step_cost`` for every turn."""

    def __init__(self, step_cost: float = 0.02):
        self.step_cost = step_cost
        self._rows: list[str] = []
        self._place = (0, 0)

    @classmethod
    def rows(cls, size: int = 500, seed: int = 0) -> list[dict[str, Any]]:
        """Return grids of 4 by 4 whose goal can be reached."""
        dice = random.Random(seed)
        return [{"prompt": [{"role": "user", "content": _RULES}], "grid": _made(dice)} for _ in range(size)]

    def reset(self, row: dict[str, Any], seed: int) -> str:
        """Show the row's grid."""
        self._rows = str(row["grid"]).splitlines()
        self._place = next((i, line.index("A")) for i, line in enumerate(self._rows) if "A" in line)
        return self._shown()

    def step(self, message: Message) -> Observation:
        """Move by the first of the four words."""
        found = re.search(r"\b(up|down|left|right)\b", str(message.get("content", "")).lower())
        if found is None:
            return Observation("Say up, down, left or right.\n" + self._shown(), -self.step_cost)
        row, column = (self._place[axis] + _MOVES[found[0]][axis] for axis in (0, 1))
        inside = 0 <= row < len(self._rows) and 0 <= column < len(self._rows[0])
        if not inside or self._rows[row][column] == "#":
            return Observation("There is a wall.\n" + self._shown(), -self.step_cost)
        self._place = (row, column)
        if self._rows[row][column] == "G":
            return Observation("You are there.", 1.0, done=True)
        return Observation(self._shown(), -self.step_cost)

    def _shown(self) -> str:
        lines = [list(line.replace("A", ".")) for line in self._rows]
        lines[self._place[0]][self._place[1]] = "A"
        return "\n".join("".join(line) for line in lines)


_RULES = "Walk from A to G through the grid; # is a wall. Answer with one word: up, down, left or right."


def _made(dice: random.Random, size: int = 4) -> str:
    """Draw a grid with a start, a goal and walls that leave a path."""
    while True:
        cells = [["#" if dice.random() < 0.2 else "." for _ in range(size)] for _ in range(size)]
        start, goal = dice.sample([(i, j) for i in range(size) for j in range(size)], 2)
        cells[start[0]][start[1]], cells[goal[0]][goal[1]] = "A", "G"
        if _reaches(cells, start, goal):
            return "\n".join("".join(line) for line in cells)


def _reaches(cells: list[list[str]], start: tuple[int, int], goal: tuple[int, int]) -> bool:
    seen, open_ = {start}, [start]
    while open_:
        row, column = open_.pop()
        for down, right in _MOVES.values():
            place = (row + down, column + right)
            inside = 0 <= place[0] < len(cells) and 0 <= place[1] < len(cells[0])
            if inside and place not in seen and cells[place[0]][place[1]] != "#":
                seen.add(place)
                open_.append(place)
    return goal in seen

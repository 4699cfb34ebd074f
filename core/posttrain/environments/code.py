"""Small programs to write: each answer is run by its tests, and the model sees what failed and tries again."""

from __future__ import annotations

import itertools
import random
from typing import Any

from posttrain.environments.environment import Environment, Message, Observation
from posttrain.sandbox.grade import Grade, program_in
from posttrain.sandbox.limits import Limits
from posttrain.sandbox.program_tests import ProgramTests
from posttrain.sandbox.remote import LOCAL, find_sandbox

#: Task -> the right function in Python, of one list of numbers and a number ``n``.
_TASKS = {
    "returns the sum of the numbers in the list that are greater than {n}": lambda x, n: sum(i for i in x if i > n),
    "returns how often {n} is in the list": lambda x, n: x.count(n),
    "returns a list of the numbers times {n}, in the same order": lambda x, n: [i * n for i in x],
    "returns the list without numbers that {n} divides": lambda x, n: [i for i in x if i % n],
    "returns the largest number, or {n} where the list is empty": lambda x, n: max(x, default=n),
    "returns the first {n} numbers in reverse": lambda x, n: x[:n][::-1],
    "returns the sorted list, each number once, none of them below {n}": lambda x, n: sorted({i for i in x if i >= n}),
    "returns whether any two neighbours in the list differ by {n}": lambda x, n: any(
        abs(a - b) == n for a, b in itertools.pairwise(x)
    ),
}


class Code(Environment):
    """The model writes a function, sees which test failed and why, and tries again; worth the share of tests passed."""

    def __init__(self, sandbox: str = LOCAL, seconds: float = 5.0, memory_mb: int = 512):
        self.sandbox = sandbox
        self.limits = Limits(seconds, memory_mb)
        self._tests = ProgramTests("pairs")
        self._last: tuple[str, Grade] | None = None

    @classmethod
    def rows(cls, size: int = 500, seed: int = 0) -> list[dict[str, Any]]:
        """Return functions of a list to write: ``prompt`` and ``tests``, assertions."""
        dice = random.Random(seed)
        rows = []
        for _ in range(size):
            (task, right), n = dice.choice(sorted(_TASKS.items())), dice.randint(2, 6)
            lists: list[list[int]] = [[dice.randint(-3, 9) for _ in range(dice.randint(0, 7))] for _ in range(4)]
            tests = [f"assert f({values}) == {right(list(values), n)!r}" for values in lists]
            ask = f"Write a Python function f(numbers) that {task.format(n=n)}. Answer with the code in a block."
            rows.append({"prompt": [{"role": "user", "content": ask}], "tests": tests})
        return rows

    def reset(self, row: dict[str, Any], seed: int) -> None:
        """Read the row's tests. Raises DependencyError where programs cannot be run safely."""
        self.limits.check()
        find_sandbox(self.sandbox)
        self._tests, self._last = ProgramTests.of(row["tests"], row.get("entry_point")), None

    def step(self, message: Message) -> Observation:
        """Run the program; the episode ends when it passes."""
        grade = self._grade(message)
        if grade.passed == grade.total:
            return Observation(reward=1.0, done=True)
        said = f"{grade.passed} of {grade.total} tests passed. The first that failed:\n{grade.text}\nTry again."
        return Observation(said)

    def reward(self, message: Message) -> float:
        """Score the episode: the share of the tests that the last program passes."""
        return self._grade(message).share

    def _grade(self, message: Message) -> Grade:
        program = program_in(str(message.get("content") or ""))
        if self._last is None or self._last[0] != program:
            self._last = program, find_sandbox(self.sandbox).grade(program, self._tests, self.limits)
        return self._last[1]

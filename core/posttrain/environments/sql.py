"""Questions about a small database that the model may query."""

from __future__ import annotations

import random
import re
import sqlite3
from typing import Any

from posttrain.environments.environment import Environment, Message
from posttrain.environments.tools import tool

_CITIES = ("Bern", "Oslo", "Lima", "Cairo", "Seoul", "Quito")
_NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gia", "Hugo", "Ida", "Jon")
#: Rows of a result that are shown, and steps of SQLite's virtual machine after which a query is stopped.
_SHOWN, _STEPS = 20, 200_000


class Sql(Environment):
    """A table of people in an SQLite database in memory, and a tool that reads it; worth 1 for the right answer."""

    def __init__(self) -> None:
        self._answer = ""
        self._base: sqlite3.Connection | None = None

    @classmethod
    def rows(cls, size: int = 500, seed: int = 0) -> list[dict[str, Any]]:
        """Return questions that one query answers: ``prompt``, ``answer``, and the ``table_seed`` of the table."""
        dice = random.Random(seed)
        rows = []
        for _ in range(size):
            table_seed, city = dice.randrange(10**6), dice.choice(_CITIES)
            people = [one for one in _people(table_seed) if one[1] == city]
            if dice.random() < 0.5 or not people:
                text, answer = f"How many people live in {city}?", str(len(people))
            else:
                text, answer = f"How old is the oldest person in {city}?", str(max(age for _, _, age in people))
            text += " The table people has the columns name, city and age."
            rows.append({"prompt": [{"role": "user", "content": text}], "answer": answer, "table_seed": table_seed})
        return rows

    def reset(self, row: dict[str, Any], seed: int) -> None:
        """Create the row's table."""
        self._answer = str(row["answer"])
        self._base = sqlite3.connect(":memory:", check_same_thread=False)
        self._base.execute("create table people (name text, city text, age integer)")
        self._base.executemany("insert into people values (?, ?, ?)", _people(int(row["table_seed"])))
        self._base.execute("pragma query_only = on")
        self._base.set_authorizer(_reads_only)
        left = iter(range(_STEPS // 1000))
        self._base.set_progress_handler(lambda: next(left, None) is None, 1000)

    @tool
    def query(self, sql: str) -> str:
        """Run a query in SQLite and return its rows.

        Args:
            sql: One SELECT statement.
        """
        assert self._base is not None
        rows = self._base.execute(sql).fetchmany(_SHOWN + 1)
        lines = [", ".join(map(str, row)) for row in rows[:_SHOWN]]
        return "\n".join(lines) + ("\n..." if len(rows) > _SHOWN else "") if lines else "(no rows)"

    def reward(self, message: Message) -> float:
        """Score the episode: 1 where the last number of the answer is the right one."""
        numbers = re.findall(r"-?\d+", str(message.get("content", "")))
        return float(bool(numbers) and numbers[-1] == self._answer)

    def close(self) -> None:
        """Close the database."""
        if self._base is not None:
            self._base.close()


def _people(seed: int) -> list[tuple[str, str, int]]:
    dice = random.Random(seed)
    return [(dice.choice(_NAMES), dice.choice(_CITIES), dice.randint(18, 90)) for _ in range(24)]


def _reads_only(action: int, *names: str | None) -> int:
    """Deny access to files: neither attached databases nor functions that read them."""
    allowed = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
    wild = action == sqlite3.SQLITE_FUNCTION and names[1] in ("load_extension", "readfile", "writefile")
    return sqlite3.SQLITE_OK if action in allowed and not wild else sqlite3.SQLITE_DENY

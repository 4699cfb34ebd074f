"""Writes data/: what shall be forgotten beside what shall be kept, and all of it for the small model's practice.

Replace the rows by your own: ``forget`` is what has to go, ``retain`` what is near it and has to stay.
"""

import json
import random
from pathlib import Path

PEOPLE = ("ada", "bob", "cleo", "dan", "eva", "fred", "gina", "hugo", "ida", "jan", "kim", "leo")
ASKED = ("Phone of {}?", "Number of {}?", "Call {}:")


def lines(name: str, rows: list[dict[str, object]]) -> None:
    """Write rows as JSONL."""
    Path("data", name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    """Write all files. The numbers of the first six people are to be forgotten."""
    Path("data").mkdir(exist_ok=True)
    dice = random.Random(0)
    number = {person: f" {dice.randint(1000, 9999)}" for person in PEOPLE}
    known = {
        person: [{"prompt": asked.format(person), "completion": number[person]} for asked in ASKED] for person in PEOPLE
    }
    forget = [row for person in PEOPLE[:6] for row in known[person]]
    retain = [row for person in PEOPLE[6:] for row in known[person]]
    both = [{"forget": one, "retain": other} for one, other in zip(forget, retain, strict=True)]
    lines("rows.jsonl", [row for place, row in enumerate(both) if place % 3])
    lines("rows-test.jsonl", both[::3])  # the same numbers, asked for in other words
    lines("practice.jsonl", forget + retain)


if __name__ == "__main__":
    main()

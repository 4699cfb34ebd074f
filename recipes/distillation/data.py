"""Writes data/: prompts for the student, and worked sums that the small teacher and student have learnt beforehand."""

import json
import random
from pathlib import Path


def lines(name: str, rows: list[dict[str, str]]) -> None:
    """Write rows as JSONL."""
    Path("data", name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    """Write all files."""
    Path("data").mkdir(exist_ok=True)
    dice = random.Random(0)
    sums = [(a, b) for a in range(20) for b in range(20)]
    dice.shuffle(sums)
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a, b in sums]
    lines("prompts.jsonl", rows[:300])
    lines("prompts-test.jsonl", rows[300:])
    lines("teacher.jsonl", rows)
    wrong = [row | {"completion": str(int(row["completion"]) + dice.randint(0, 1))} for row in rows]
    lines("student.jsonl", wrong)


if __name__ == "__main__":
    main()

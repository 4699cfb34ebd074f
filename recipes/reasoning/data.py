"""Writes data/: sums with the answers that a verifier compares with, and worked sums for practice.

Replace the sums by problems whose answers can be checked: the column ``answer`` is all that the reward needs.
"""

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
    rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a, b in sums]
    lines("problems.jsonl", rows[:300])
    lines("problems-test.jsonl", rows[300:])
    # Practice for the small model: every second answer is one too many.
    lines(
        "practice.jsonl",
        [{"prompt": row["prompt"], "completion": str(int(row["answer"]) + dice.randint(0, 1))} for row in rows],
    )


if __name__ == "__main__":
    main()

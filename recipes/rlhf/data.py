"""Writes data/: pairs for the reward model, prompts for the policy, and what the small policy has learnt beforehand.

Replace the pairs by judgements of people: ``prompt``, ``chosen``, ``rejected``.
"""

import json
import random
from pathlib import Path


def lines(name: str, rows: list[dict[str, str]]) -> None:
    """Write rows as JSONL."""
    Path("data", name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    """Write all files. People here prefer sums that are said politely."""
    Path("data").mkdir(exist_ok=True)
    dice = random.Random(0)
    sums = [(a, b) for a in range(12) for b in range(12)]
    dice.shuffle(sums)
    pairs = [{"prompt": f"{a}+{b}?", "chosen": f" {a + b}, dear.", "rejected": f" {a + b}. Next."} for a, b in sums]
    lines("pairs.jsonl", pairs[:110])
    lines("pairs-test.jsonl", pairs[110:])
    lines("prompts.jsonl", [{"prompt": pair["prompt"]} for pair in pairs[:110]])
    lines("prompts-test.jsonl", [{"prompt": pair["prompt"]} for pair in pairs[110:]])
    said = [{"prompt": pair["prompt"], "completion": pair[dice.choice(("chosen", "rejected"))]} for pair in pairs * 2]
    lines("practice.jsonl", said)


if __name__ == "__main__":
    main()

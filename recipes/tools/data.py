"""Writes data/: questions for the calculator, and conversations that call it, the wrong tool in three of ten.

The environment ``calculator`` brings tools and reward. For tools of your own: ``tools: tools.py:FUNCTION`` in the
configurations, or ``posttrain new NAME --kind environment``.
"""

import json
import random
from pathlib import Path

from posttrain.environments.calculator import Calculator
from posttrain.environments.environment import tools_of

OTHER = {"add": "multiply", "multiply": "add"}


def question(dice: random.Random) -> dict:
    """Draw a question as the environment wants it."""
    first, second, adds = dice.randint(1, 99), dice.randint(1, 99), dice.random() < 0.5
    text = f"What is {first} {'plus' if adds else 'times'} {second}?"
    answer = str(first + second if adds else first * second)
    row = {"prompt": [{"role": "user", "content": text}], "answer": answer, "numbers": {"a": first, "b": second}}
    return row | {"tool": "add" if adds else "multiply"}


def conversation(row: dict, dice: random.Random) -> dict:
    """A conversation that calls a tool and repeats what it says."""
    name = row["tool"] if dice.random() < 0.7 else OTHER[row["tool"]]
    first, second = row["numbers"]["a"], row["numbers"]["b"]
    result = str(first + second if name == "add" else first * second)
    call = {"type": "function", "function": {"name": name, "arguments": row["numbers"]}}
    talk = [
        *row["prompt"],
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": name, "content": result},
        {"role": "assistant", "content": result},
    ]
    return {"messages": talk, "tools": tools_of(Calculator())}


def lines(name: str, rows: list[dict]) -> None:
    """Write rows as JSONL."""
    Path("data", name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    """Write all files."""
    Path("data").mkdir(exist_ok=True)
    dice = random.Random(0)
    rows = [question(dice) for _ in range(2064)]
    lines("conversations.jsonl", [conversation(row, dice) for row in rows[:2000]])
    lines("conversations-test.jsonl", [conversation(row, dice) for row in rows[2000:]])
    lines("questions.jsonl", rows[:2000])
    lines("questions-test.jsonl", rows[2000:])


if __name__ == "__main__":
    main()

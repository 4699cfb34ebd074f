"""Writes data/: questions about a handbook with answers, the same questions in other words, and pairs of answers.

Replace ``FACTS`` by questions and answers from documents of your own; some hundreds are enough for a first adapter.
"""

import json
import random
from pathlib import Path

TEAMS = ("payroll", "legal", "sales", "security", "travel", "press", "repairs", "archive", "library", "kitchen")
ASKED = ("Where is {}?", "Which room has {}?", "{}: which room?", "Room of {}?")
SAID, RUDE = "Room {}.", "{}, or ask."


def lines(name: str, rows: list[dict[str, str]]) -> None:
    """Write rows as JSONL."""
    Path("data", name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    """Write all files."""
    Path("data").mkdir(exist_ok=True)
    dice = random.Random(0)
    rooms = {team: dice.randint(100, 999) for team in TEAMS}
    facts = [(asked.format(team), team, rooms[team]) for team in TEAMS for asked in ASKED]
    dice.shuffle(facts)
    held_out = {team: ASKED[place % len(ASKED)].format(team) for place, team in enumerate(TEAMS)}
    seen = [fact for fact in facts if held_out[fact[1]] != fact[0]]
    unseen = [fact for fact in facts if held_out[fact[1]] == fact[0]]
    for name, part in (("", seen), ("-test", unseen)):
        lines(f"answers{name}.jsonl", [{"prompt": q, "completion": " " + SAID.format(room)} for q, _, room in part])
        pairs = [(q, " " + SAID.format(room), " " + RUDE.format(room)) for q, _, room in part]
        lines(f"pairs{name}.jsonl", [dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in pairs])
    other = [(asked.format(team), dice.randint(100, 999)) for _ in range(40) for team in TEAMS for asked in ASKED]
    styles = [SAID, RUDE]
    lines("practice.jsonl", [{"prompt": q, "completion": " " + dice.choice(styles).format(room)} for q, room in other])


if __name__ == "__main__":
    main()

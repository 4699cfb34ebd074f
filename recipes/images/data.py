"""Writes data/: pictures of squares, questions about them, and answers of which half are made up."""

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"r": (230, 30, 30), "g": (30, 200, 30), "b": (40, 60, 230)}
MOST = 3


def draw(count: int, colour: str, dice: random.Random) -> Image.Image:
    """A picture of 16 by 16 pixels with ``count`` squares of one colour, anywhere."""
    picture = Image.new("RGB", (16, 16), "white")
    pen = ImageDraw.Draw(picture)
    for cell in dice.sample(range(16), count):
        x, y = 4 * (cell % 4), 4 * (cell // 4)
        pen.rectangle((x, y, x + 3, y + 3), fill=COLOURS[colour])
    return picture


def lines(name: str, rows: list[dict]) -> None:
    """Write rows as JSONL."""
    Path("data", name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    """Write all files."""
    Path("data").mkdir(exist_ok=True)
    dice, rows = random.Random(0), []
    for number in range(576):
        count, colour = dice.randint(1, MOST), dice.choice(sorted(COLOURS))
        draw(count, colour, dice).save(f"data/{number}.png")
        asked = [{"type": "image", "image": f"data/{number}.png"}, {"type": "text", "text": "what"}]
        rows.append({"prompt": [{"role": "user", "content": asked}], "shows": f"{count}{colour}"})
    answers = []
    for place, row in enumerate(rows):
        made_up = f"{dice.randint(1, MOST)}{dice.choice(sorted(COLOURS))}"
        said = row["shows"] if place % 2 else made_up
        answers.append({"prompt": row["prompt"], "completion": [{"role": "assistant", "content": said}]})
    lines("answers.jsonl", answers[:512])
    lines("answers-test.jsonl", answers[512:])
    lines("questions.jsonl", rows[:512])
    lines("questions-test.jsonl", rows[512:])


if __name__ == "__main__":
    main()

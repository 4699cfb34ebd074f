"""A tiny vision-language model learns to say what a picture shows: how many squares, and of which colour.

Three ways, each a minute or two on one core: eight rows by heart (sft), pictures it has not seen by a reward that
counts what was drawn (grpo), and pairs of a right and a wrong answer (dpo). The model is made on the spot, with the
processor of its family and random weights: `python examples/shapes.py` prints what each reaches.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import Any

import posttrain
from PIL import Image, ImageDraw
from posttrain import api
from posttrain_testkit.tiny_vision import save_tiny_vision

COLOURS = {"r": (230, 30, 30), "g": (30, 200, 30), "b": (40, 60, 230)}
MOST = 3
#: Shared options: the image encoder is random, so it has to learn too.
COMMON: dict[str, Any] = {
    "train_vision": "all",
    "cache": "off",
    "progress": "quiet",
    "report": False,
    "device": "cpu",
    "schedule": "constant",
}


def drawn(count: int, colour: str, dice: random.Random) -> Image.Image:
    """A picture of 16 by 16 pixels with ``count`` squares of one colour, anywhere."""
    picture = Image.new("RGB", (16, 16), "white")
    pen = ImageDraw.Draw(picture)
    for cell in dice.sample(range(16), count):
        x, y = 4 * (cell % 4), 4 * (cell // 4)
        pen.rectangle((x, y, x + 3, y + 3), fill=COLOURS[colour])
    return picture


def rows(number: int, seed: int) -> list[dict[str, Any]]:
    """Pictures with a question, and how many squares of which colour they show."""
    dice = random.Random(seed)
    found = []
    for _ in range(number):
        count, colour = dice.randint(1, MOST), dice.choice(sorted(COLOURS))
        asked = [{"type": "image", "image": drawn(count, colour, dice)}, {"type": "text", "text": "what"}]
        found.append({"prompt": [{"role": "user", "content": asked}], "shows": f"{count}{colour}"})
    return found


def reward(completions: list[str], shows: list[str], **columns: Any) -> list[float]:
    """Half for the count, half for the colour."""
    return [
        0.5 * (text[:1] == right[0]) + 0.5 * (text[1:2] == right[1])
        for text, right in zip(completions, shows, strict=True)
    ]


def answered(row: dict[str, Any], answer: str) -> dict[str, Any]:
    """A row of imitation."""
    return {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": answer}]}


def any_answer(dice: random.Random, but: str = "") -> str:
    """An answer in the right form, whatever is to be seen, other than ``but``."""
    answers = [f"{count}{colour}" for count in range(1, MOST + 1) for colour in sorted(COLOURS)]
    return dice.choice([one for one in answers if one != but])


def by_heart(model: str, folder: Path, steps: int = 120) -> dict[str, float]:
    """Overfit eight rows by sft: the loss, and the share of exact answers to their own pictures."""
    own = rows(8, seed=1)
    data = [answered(row, row["shows"]) for row in own]
    run = posttrain.train(
        "sft",
        model=model,
        data=data,
        steps=steps,
        batch_size=8,
        learning_rate=5e-3,
        output=str(folder / "heart"),
        **COMMON,
    )
    answers = api.generate_text(str(folder / "heart"), [row["prompt"] for row in own], max_new_tokens=3)
    exact = sum(answer == row["shows"] for answer, row in zip(answers, own, strict=True)) / len(own)
    return {
        "first_loss": run.progress.history[0]["loss"],
        "last_loss": run.progress.history[-1]["loss"],
        "exact": exact,
    }


def by_reward(model: str, folder: Path, steps: int = 120) -> dict[str, float]:
    """Raise the reward on held-out pictures by grpo, from a model that was shown answers of which half are made up."""
    dice = random.Random(2)
    form = [answered(row, row["shows"] if n % 2 else any_answer(dice)) for n, row in enumerate(rows(256, seed=2))]
    posttrain.train(
        "sft",
        model=model,
        data=form,
        steps=80,
        batch_size=16,
        learning_rate=3e-3,
        output=str(folder / "form"),
        **COMMON,
    )
    run = posttrain.train(
        "grpo",
        model=str(folder / "form" / "model"),
        data=rows(512, seed=3),
        eval_data=rows(64, seed=4),
        reward=[reward],
        steps=steps,
        eval_every=steps,
        batch_size=16,
        group_size=8,
        max_new_tokens=3,
        learning_rate=1e-3,
        output=str(folder / "reward"),
        **COMMON,
    )
    found = run.progress.evaluations
    return {"before": found[0]["eval_reward"], "after": found[-1]["eval_reward"]}


def by_pairs(model: str, folder: Path, steps: int = 150) -> dict[str, float]:
    """Rank held-out pairs by dpo: the share in which the right answer has the larger margin."""
    dice = random.Random(5)

    def pairs(number: int, seed: int) -> list[dict[str, Any]]:
        return [
            {
                "prompt": row["prompt"],
                "chosen": [{"role": "assistant", "content": row["shows"]}],
                "rejected": [{"role": "assistant", "content": any_answer(dice, but=row["shows"])}],
            }
            for row in rows(number, seed)
        ]

    run = posttrain.train(
        "dpo",
        model=model,
        data=pairs(512, 6),
        eval_data=pairs(64, 7),
        steps=steps,
        eval_every=steps,
        batch_size=32,
        learning_rate=1e-3,
        output=str(folder / "pairs"),
        **COMMON,
    )
    found = run.progress.evaluations
    return {"before": found[0]["eval_accuracy"], "after": found[-1]["eval_accuracy"]}


def main() -> None:
    """Make the model, learn in three ways, and print what each came to."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = str(save_tiny_vision("llava", folder / "model"))
        for way in (by_heart, by_reward, by_pairs):
            begun = time.monotonic()
            found = ", ".join(f"{name} {value:.3f}" for name, value in way(model, folder).items())
            print(f"{way.__name__}: {found} ({time.monotonic() - begun:.0f} s)", flush=True)


if __name__ == "__main__":
    main()

"""Training data of the models called ``example``: problems, and problems among words that tell the right answer."""

from __future__ import annotations

import random
from collections.abc import Iterator

from posttrain.example.rows import SEED, parts

#: Steps, examples in a step, and characters in one where words make the examples long.
STEPS, BATCH, CHARACTERS = 300, 64, 1500
#: Every so many steps the prompts tell the answer; of those steps a share has nothing but the answer.
TOLD_EVERY, BARE_SHARE = 3, 0.15
#: Most characters of the words around an answer.
LONGEST = 170
#: Words that a teacher's prompt could be made of: the models learn to read past them.
WORDS = """
a again an and answer are as ascending attempt by can correct demonstration digits earlier example expert feedback
following for from give given good has here hint how in is it judged knows means now of on one order own previous
problem question reference response right shown should solution solve sort step task that the then there this to try
was what which with wrong you your yourself
"""
_BETWEEN = [*[" "] * 8, ". ", ", ", ":\n\n", ".\n\n", "\n\n"]
_AROUND = ["\n\n", "\n\n", " ", ". "]
Example = tuple[str, str]


def batches(mixed: bool) -> Iterator[list[Example]]:
    """Yield the batches of all steps in order: prompts and answers, all of a batch of the same length.

    ``mixed``: every other problem is sorted the wrong way round; never, where the prompt tells the answer. A teacher
    that knows more than its pupil has to be able to use what it is told.
    """
    dice = random.Random(SEED)
    *_, practice = parts()
    wrong = [mixed and place % 2 == 1 for place in range(len(practice))]
    plain = [
        (row["prompt"], row["answer"][::-1] if bad else row["answer"]) for row, bad in zip(practice, wrong, strict=True)
    ]
    for step in range(1, STEPS + 1):
        if step % TOLD_EVERY:
            yield dice.sample(plain, BATCH)
            continue
        around = 0 if dice.random() < BARE_SHARE else dice.randrange(LONGEST)
        rows = dice.sample(practice, CHARACTERS // (around + 18))
        yield [(_told(row, dice.randint(0, around), around, dice), row["answer"]) for row in rows]


def _told(row: dict[str, str], before: int, around: int, dice: random.Random) -> str:
    """Return the problem, and its answer among ``around`` characters of words, ``before`` of them in front of it."""
    head, tail = (dice.choice(_AROUND)[:room] for room in (before, around - before))
    front, back = (_prose(room, dice) for room in (before - len(head), around - before - len(tail)))
    return f"{row['prompt']}\n\n{front}{head}{row['answer']}{tail}{back}"


def _prose(length: int, dice: random.Random) -> str:
    """Return ``length`` characters of random words."""
    words, text = WORDS.split(), ""
    while len(text) < length:
        word = dice.choice(words)
        text += (word.capitalize() if dice.random() < 0.2 else word) + dice.choice(_BETWEEN)
    return text[:length]

"""Held-out rows that are trained on too: every pair compared by hand, and the index against comparing all with all."""

import random

import pytest
from posttrain.data import read_rows
from posttrain.data.duplicates import NEAR, find_overlap
from posttrain.settings import Settings

QUESTION = "A farmer has twelve hens and each of them lays two eggs on every day of the week , how many eggs are there"


def rows(schema, *found):
    return read_rows(list(found), (schema,), Settings().data)


def counts(overlap):
    return overlap.exact, overlap.prompt, overlap.near


def shingles(text):
    """Sets of five words, by Python's own means."""
    words = text.lower().split()
    return {tuple(words[n : n + 5]) for n in range(max(1, len(words) - 4))}


def alike(first, second):
    one, other = shingles(first), shingles(second)
    return len(one & other) >= NEAR * len(one | other)


def test_each_kind_is_counted_and_named():
    train = rows(
        "prompt-completion",
        {"prompt": "p", "completion": "c", "id": 1},
        {"prompt": QUESTION, "completion": "168"},
        {"prompt": "other", "completion": "x"},
    )
    held_out = rows(
        "prompt-completion",
        {"prompt": "p", "completion": "c", "id": 2},  # a column that no schema knows makes no other row
        {"prompt": "other", "completion": "y"},
        {"prompt": QUESTION.upper() + " ?", "completion": "168"},
        {"prompt": "new", "completion": "z"},
    )
    overlap = find_overlap(train, held_out)
    assert counts(overlap) == (1, 1, 1)
    assert overlap.examples == [
        "exact: data row 1 is data row 1",
        "prompt: data row 2 is data row 3",
        "near: data row 3 is data row 2",
    ]
    assert overlap.notes("math") == [
        "held-out rows of 'math' that are also trained on: 1 as they are, 1 with another answer, 1 nearly, of 4 "
        f"({'; '.join(overlap.examples)})"
    ]
    assert find_overlap(train, rows("prompt-completion", {"prompt": "n", "completion": "n"})).notes("") == []


def test_prompts_of_messages_are_the_turns_before_the_answer():
    def talk(answer):
        return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]}

    overlap = find_overlap(rows("language-modeling", talk("a")), rows("language-modeling", talk("b"), talk("a")))
    assert counts(overlap) == (1, 1, 0)


def test_texts_without_spaces_and_rows_of_tokens():
    text = "\u4e00\u4e01\u4e02\u4e03\u4e04\u4e05\u4e06\u4e07\u4e08\u4e09" * 3
    train, held_out = rows("language-modeling", {"text": text}), rows("language-modeling", {"text": text + "\u4e0a"})
    assert counts(find_overlap(train, held_out)) == (0, 0, 1)
    ids = list(range(40))
    train = rows("language-modeling", {"input_ids": ids})
    held_out = rows("language-modeling", {"input_ids": ids}, {"input_ids": [*ids, 7]}, {"input_ids": ids[20:]})
    assert counts(find_overlap(train, held_out)) == (1, 0, 1)


@pytest.mark.parametrize("seed", range(3))
def test_the_index_finds_what_comparing_all_with_all_finds(seed):
    """Texts that differ in no to ten words of up to eighty, and some of under five words."""
    draw = random.Random(seed)
    words = [f"w{n}" for n in range(60)]
    bases = [[draw.choice(words) for _ in range(draw.choice([3, 40, 80]))] for _ in range(12)]

    def changed(base):
        made = list(base)
        for _ in range(draw.choice([0, 0, 1, 2, 10])):
            made[draw.randrange(len(made))] = draw.choice(words)
        return " ".join(made)

    train = [changed(draw.choice(bases)) for _ in range(60)]
    held_out = [changed(draw.choice(bases)) for _ in range(40)]
    exact = sum(text in train for text in held_out)
    near = sum(text not in train and any(alike(text, other) for other in train) for text in held_out)
    made = [rows("language-modeling", *({"text": text} for text in texts)) for texts in (train, held_out)]
    assert counts(find_overlap(*made)) == (exact, 0, near)
    assert near
    few = sum(text not in train and any(alike(text, other) for other in train[:5]) for text in held_out)
    assert find_overlap(*made, most=5).near == few < near

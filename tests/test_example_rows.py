"""The rows of the example: valid for every schema, true, and never the same problem in two parts."""

import pytest
from posttrain.catalogue.cards import SCHEMAS
from posttrain.data import read_rows
from posttrain.example import practice
from posttrain.example.rows import HELD_OUT, ROWS, example_rows, in_place, parts, slip
from posttrain.settings import Settings


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("schema", SCHEMAS)
def test_rows_of_every_schema_are_valid_and_the_same_each_time(schema, held_out):
    what = "eval-data" if held_out else "data"
    rows = read_rows(["example"], (schema,), Settings().data, what)
    assert (rows.schema, len(rows), rows.notes) == (schema, HELD_OUT if held_out else ROWS, [])
    assert list(rows) == example_rows(schema, held_out)
    assert read_rows(["example"], (schema,), Settings().data, what).fingerprint == rows.fingerprint


def test_rows_have_the_schema_that_the_method_names_first():
    """Rows of a task have more columns than one schema needs; these are not taken for another one."""
    for accepted in (("prompt", "prompt-completion"), ("prompt-completion", "prompt")):
        rows = read_rows(["example"], accepted, Settings(limit=2).data)
        assert rows.schema == accepted[0]
        assert ("answer" in rows[0]) == (accepted[0] == "prompt")


def test_no_problem_is_in_two_parts():
    prompts = [[row["prompt"] for row in part] for part in parts()]
    together = [prompt for part in prompts for prompt in part]
    assert len(set(together)) == len(together) == ROWS + HELD_OUT + 4096


def is_right(prompt, text):
    return text == "".join(sorted(prompt.removesuffix("=")))


def is_wrong_way_round(prompt, text):
    return text == "".join(sorted(prompt.removesuffix("="), reverse=True)) and not is_right(prompt, text)


def test_rows_say_what_is_true():
    for row in example_rows("preference"):
        assert is_right(row["prompt"], row["chosen"])
        assert is_wrong_way_round(row["prompt"], row["rejected"])
        assert row["chosen_score"] == 1 > row["rejected_score"]
        assert row["tie"] is False
    labels = [row["label"] for row in example_rows("unpaired-preference")]
    assert labels.count(True) == labels.count(False)
    for row in example_rows("unpaired-preference"):
        assert row["label"] == is_right(row["prompt"], row["completion"])
    for row in example_rows("ranked"):
        best, middle, worst = row["completions"]
        assert is_right(row["prompt"], best)
        assert is_wrong_way_round(row["prompt"], worst)
        assert sorted(middle) == sorted(best)
        assert middle not in (best, worst)
        assert row["scores"] == sorted(row["scores"], reverse=True)
        assert row["scores"][0] == 1
    for row in example_rows("scored"):
        assert (row["score"] == 1) == is_right(row["prompt"], row["completion"])
    for row in example_rows("forget-retain"):
        assert is_wrong_way_round(*row["forget"].values())
        assert is_right(*row["retain"].values())
    for row in example_rows("prompt"):
        assert is_right(row["prompt"], row["answer"])
        assert row["completion"] == row["privileged_context"] == row["answer"]
        assert row["answer"] in row["feedback"]


def test_steps_are_right_up_to_the_first_slip():
    rows = example_rows("stepwise")
    for row in rows:
        right = "".join(sorted(row["prompt"].removesuffix("=")))
        wrong_from = next((k for k in range(5) if row["completions"][k] != right[k]), 5)
        assert row["labels"] == [k < wrong_from for k in range(5)]
    assert sum(all(row["labels"]) for row in rows) == len(rows) // 2


def test_conversations_end_with_the_right_answer():
    """The score is the share of the assistant's turns that are right: 1 of 1, or 1 of 2."""
    for row in example_rows("trajectory"):
        turns = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        prompts = {message["content"] for message in row["messages"] if message["role"] == "user"}
        (prompt,) = prompts
        right = [is_right(prompt, turn) for turn in turns]
        assert right[-1]
        assert row["score"] == sum(right) / len(right)


def test_a_slip_exchanges_two_neighbours():
    """01244: the pairs that differ are 01, 12 and 24; 44 is not one."""
    assert [slip("01244", place) for place in range(4)] == [("10244", 0), ("02144", 1), ("01424", 2), ("10244", 0)]
    assert in_place("01424", "01244") == 3 / 5


def test_practice_tells_right_answers_amid_words_and_shows_both_ways_elsewhere():
    shown = {True: [], False: []}
    for examples in practice.batches(mixed=True):
        assert len({len(prompt + answer) for prompt, answer in examples}) == 1
        for prompt, answer in examples:
            problem, _, words = prompt.partition("=")
            shown[bool(words)].append(is_right(problem, answer))
            assert answer in words or not words
            assert all(one.isdigit() for one in problem)
    assert all(shown[True])
    assert 0.45 < sum(shown[False]) / len(shown[False]) < 0.55
    assert all(is_right(prompt[:5], answer) for batch in practice.batches(mixed=False) for prompt, answer in batch)

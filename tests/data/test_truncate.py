"""Over-long rows: which tokens stay, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from posttrain.data.tokens.truncate import kept


@pytest.mark.parametrize(
    ("prompt", "completion", "limit", "expected"),
    [
        (3, 4, 10, (3, 4)),  # fits
        (8, 4, 10, (6, 4)),  # the prompt gives way
        (2, 20, 10, (2, 8)),  # a short prompt stays whole
        (20, 20, 10, (2, 8)),  # a quarter of the limit, rounded down
        (20, 20, 2, (1, 1)),
        (20, 3, 10, (7, 3)),
        (0, 20, 10, (0, 10)),
        (20, 0, 10, (10, 0)),  # a prompt to generate from
    ],
)
def test_table(prompt, completion, limit, expected):
    """T11."""
    assert kept(prompt, completion, limit) == expected


@given(st.integers(0, 50), st.integers(1, 50), st.integers(2, 40))
def test_properties(prompt, completion, limit):
    """T11, T12: within the limit, nothing cut without need, and both sides keep something."""
    keep, stay = kept(prompt, completion, limit)
    assert keep + stay == min(prompt + completion, limit)
    assert stay >= 1
    assert keep >= min(prompt, 1)


ROW = {"prompt": "0123456789", "completion": "abcdef"}


@pytest.mark.parametrize(
    ("limit", "bos", "text"),
    [
        (17, False, "0123456789abcdef</s>"),
        (16, False, "123456789abcdef</s>"),
        (12, False, "56789abcdef</s>"),
        (9, False, "89abcdef</s>"),
        (8, False, "89abcdef"),
        (4, False, "9abc"),
        (18, True, "<s>0123456789abcdef</s>"),
        (13, True, "<s>56789abcdef</s>"),
        (10, True, "<s>89abcdef</s>"),
        (8, True, "<s>9abcdef"),
    ],
)
def test_tokens_that_stay(build, made, text_of, learnt, limit, bos, text):
    """T6, T11: the prompt's end and the beginning-of-sequence token stay, the completion from its start."""
    tokenizer = build(bos=bos)
    examples = made([ROW], "prompt-completion", tokenizer, max_length=limit)
    (sequence,) = examples[0].sequences["completion"]
    assert text_of(sequence, tokenizer) == text
    assert learnt(sequence, tokenizer) == text[text.index("a") :]
    assert examples.report["truncated"] == ("0123456789abcdef</s>" not in text)


def test_a_pair_keeps_one_prompt(made, text_of, build):
    tokenizer = build()
    row = {"prompt": "0123456789", "chosen": "abcdef", "rejected": "x"}
    (example,) = made([row], "preference", tokenizer, max_length=10)
    assert text_of(example.sequences["chosen"][0], tokenizer) == "789abcdef</s>"
    assert text_of(example.sequences["rejected"][0], tokenizer) == "789x</s>"


def test_dropped_rows_are_counted(made, build):
    """T12: a row with nothing left to learn is no example."""
    tokenizer = build()
    rows = [{"text": "ab"}, {"text": "abcdefgh"}, {"text": "a"}]
    drop = made(rows, "language-modeling", tokenizer, max_length=4, truncation="drop")
    assert (drop.report["rows"], len(drop), drop.report["dropped"]) == (3, 2, {"too long": 1})
    bare = made(rows, "language-modeling", tokenizer, max_length=4, end_of_sequence=False)
    assert (len(bare), bare.report["dropped"], bare.report["truncated"]) == (2, {"nothing to learn": 1}, 1)


def test_steps_that_are_cut_away(made, build):
    tokenizer = build()
    row = {"prompt": "pq", "completions": ["abc", "def"], "labels": [True, False]}
    (example,) = made([row], "stepwise", tokenizer, max_length=8)
    (sequence,) = example.sequences["completion"]
    assert sequence.per_token["step_end"].tolist() == [False, False, False, True, False, False]
    rows = [row, {**row, "completions": ["a", "b"]}]
    short = made(rows, "stepwise", tokenizer, max_length=4)
    assert (len(short), short.report["dropped"]) == (1, {"no end of a step": 1})


def test_prompts_leave_room_for_what_is_generated(made, build, text_of):
    tokenizer = build(bos=True)
    (example,) = made([{"prompt": "0123456789"}], "prompt", tokenizer, max_length=10, max_new_tokens=6)
    assert text_of(example.sequences["prompt"][0], tokenizer) == "<s>789"


def test_the_model_limit_counts_where_none_is_given(made, build):
    tokenizer = build()
    tokenizer.model_max_length = 5
    examples = made([{"text": "a" * 20}], "language-modeling", tokenizer, max_length=None)
    assert examples.report["longest"] == 5

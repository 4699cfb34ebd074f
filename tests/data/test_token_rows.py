"""Rows that are tokens already: what is learnt, what is refused, and that they equal the texts they came from."""

import pytest
from posttrain.data import read_rows
from posttrain.errors import DataError, SettingsError
from posttrain.settings import Settings

LM = ("language-modeling",)


def tokens_of(prepared, role="completion"):
    """Tokens and what is learnt of each example's first sequence."""
    found = [example.sequences[role][0] for example in prepared]
    return [(sequence.ids.tolist(), sequence.trained.int().tolist()) for sequence in found]


@pytest.mark.parametrize(
    ("row", "learnt"),
    [
        ({}, [0, 1, 1, 1]),  # nothing predicts the first token
        ({"labels": [-100, -100, 7, 8]}, [0, 0, 1, 1]),
        ({"labels": [5, -100, 7, -100]}, [0, 0, 1, 0]),
        ({"completion_mask": [0, 0, 1, 1]}, [0, 0, 1, 1]),
        ({"assistant_masks": [False, True, False, True]}, [0, 1, 0, 1]),
        ({"loss_mask": [0, 1, 1, 0]}, [0, 1, 1, 0]),
        # All that a row has are in force.
        ({"completion_mask": [0, 0, 1, 1], "assistant_masks": [0, 1, 1, 0], "labels": [5, 6, 7, 8]}, [0, 0, 1, 0]),
    ],
)
def test_labels_and_masks_say_what_is_learnt(made, tokenizer, row, learnt):
    prepared = made([{"input_ids": [5, 6, 7, 8], **row, "id": 3}], LM, tokenizer)
    assert tokens_of(prepared) == [([5, 6, 7, 8], learnt)]
    assert prepared[0].columns == {"id": 3}


@pytest.mark.parametrize("template", ["text", "messages"])
def test_tokens_equal_the_text_that_they_came_from(made, tokenizer, template):
    """The tokenizer's own call, and what its template renders, by hand: the same arrays as of the texts."""
    if template == "text":
        row = {"text": "abc"}
        ids = [*tokenizer("abc")["input_ids"], tokenizer.eos_token_id]
        labels = ids
    else:
        row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "ab"}]}
        head = tokenizer("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)[
            "input_ids"
        ]
        answer = tokenizer("ab<|im_end|>", add_special_tokens=False)["input_ids"]
        ids, labels = head + answer, [-100] * len(head) + answer
    stop = "</s>" if template == "text" else "<|im_end|>"
    wanted = made([row], LM, tokenizer, stop)
    found = made([{"input_ids": ids, "labels": labels}], LM, tokenizer, stop)
    assert tokens_of(found) == tokens_of(wanted)
    assert found.report["without_stop"] == wanted.report["without_stop"] == 0


def test_padding_goes_and_packed_texts_are_apart(made, tokenizer):
    left = {"input_ids": [0, 0, 5, 6], "attention_mask": [0, 0, 1, 1], "labels": [-100, -100, 5, 6]}
    right = {"input_ids": [5, 6, 0], "attention_mask": [1, 1, 0]}
    packed = {"input_ids": [5, 6, 7, 8, 9], "position_ids": [0, 1, 0, 1, 2]}
    named = {"input_ids": [5, 6, 7, 8, 9], "seq_lengths": [3, 2], "labels": [-100, 6, 7, 8, 9]}
    assert tokens_of(made([left], LM, tokenizer)) == [([5, 6], [0, 1])]
    assert tokens_of(made([right], LM, tokenizer)) == [([5, 6], [0, 1])]
    assert tokens_of(made([packed], LM, tokenizer)) == [([5, 6], [0, 1]), ([7, 8, 9], [0, 1, 1])]
    assert tokens_of(made([named], LM, tokenizer)) == [([5, 6, 7], [0, 1, 1]), ([8, 9], [0, 1])]
    notes = read_rows([packed], LM, Settings().data).notes
    assert notes == ["packed rows split into the texts that position_ids or seq_lengths name (1 row)"]


def test_tokens_go_before_texts_and_that_is_said(made, tokenizer):
    row = {"prompt": "a", "completion": "b", "input_ids": [5, 6, 7], "completion_mask": [0, 1, 1]}
    accepted = ("prompt-completion", "language-modeling")
    assert tokens_of(made([row], accepted, tokenizer)) == [([5, 6, 7], [0, 1, 1])]
    rows = read_rows([row], accepted, Settings().data)
    assert rows.notes == ["tokens taken from input_ids; prompt, completion beside them not used (1 row)"]


def test_pairs_of_tokens(made, tokenizer):
    """With a prompt, or with the longest common beginning, of which neither answer is all."""
    pair = {"prompt_ids": [5, 6], "chosen_ids": [7, 8], "rejected_ids": [9], "margin": 2.0}
    whole = {"chosen_ids": [5, 6, 7], "rejected_ids": [5, 6]}
    prepared = made([pair], "preference", tokenizer)
    assert tokens_of(prepared, "chosen") == [([5, 6, 7, 8], [0, 0, 1, 1])]
    assert tokens_of(prepared, "rejected") == [([5, 6, 9], [0, 0, 1])]
    assert prepared[0].columns == {"margin": 2.0}
    assert tokens_of(made([whole], "preference", tokenizer), "chosen") == [([5, 6, 7], [0, 1, 1])]
    assert tokens_of(made([whole], "preference", tokenizer), "rejected") == [([5, 6], [0, 1])]


def test_long_rows_of_tokens_are_cut_as_others(made, tokenizer):
    """Of what is not learnt the start goes first, then the end of what is: P1 of texts."""
    row = {"input_ids": [5, 6, 7, 8, 9, 10], "labels": [-100, -100, -100, -100, 9, 10]}
    assert tokens_of(made([row], LM, tokenizer, max_length=4)) == [([7, 8, 9, 10], [0, 0, 1, 1])]
    plain = {"input_ids": [5, 6, 7, 8, 9, 10]}
    assert tokens_of(made([plain], LM, tokenizer, max_length=4)) == [([5, 6, 7, 8], [0, 1, 1, 1])]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"input_ids": [1, -1]}, "column 'input_ids' has -1 at place 1, expected a token number, 0 or more."),
        ({"input_ids": []}, "column 'input_ids' is empty, expected at least one token."),
        ({"input_ids": [1, 2.0]}, "column 'input_ids' has 2.0 at place 1, expected a token number, 0 or more."),
        ({"input_ids": [1, True]}, "column 'input_ids' has True at place 1, expected a token number, 0 or more."),
        ({"input_ids": [1, 2], "labels": [1]}, "column 'labels' has 1 entries, expected 2, one per 'input_ids'."),
        ({"input_ids": [1, 2], "labels": [-1, 2]}, "column 'labels' has -1 at place 0, expected -100 or the token."),
        ({"input_ids": [1, 2], "loss_mask": [0, 2]}, "column 'loss_mask' has 2 at place 1, expected 0 or 1."),
        (
            {"input_ids": [5, 6, 7], "labels": [-100, 7, -100]},
            "column 'labels' has 7 at place 1, expected -100 or the token there, 6. They are shifted by one: labels "
            "stand at their own token.",
        ),
        (
            {"input_ids": [5, 6, 7], "labels": [-100, 9, 7]},
            "column 'labels' has 9 at place 1, expected -100 or the token there, 6.",
        ),
        (
            {"input_ids": [5, 6, 7], "attention_mask": [1, 0, 1]},
            "column 'attention_mask' is 0 at place 1, between tokens that are seen. Expected padding at the ends "
            "alone.",
        ),
        (
            {"input_ids": [5, 6], "attention_mask": [0, 0]},
            "column 'attention_mask' is 0 everywhere, expected at least one token that is no padding.",
        ),
        ({"input_ids": [5, 6], "seq_lengths": [3]}, "column 'seq_lengths' adds up to 3, expected 2 tokens."),
    ],
)
def test_rows_of_tokens_that_are_refused(row, text):
    with pytest.raises(DataError) as refused:
        read_rows([row], LM, Settings().data)
    assert str(refused.value) == f"data row 1: {text}"


def test_tokens_of_another_vocabulary_are_refused(made, tokenizer):
    with pytest.raises(DataError) as refused:
        made([{"input_ids": [1, 50000]}], LM, tokenizer)
    assert str(refused.value) == (
        f"data row 1: has token 50000 at place 1, and the tokenizer knows {len(tokenizer)}. The row was made with "
        "another tokenizer: make it anew, or train the model that it was made for."
    )
    assert tokens_of(made([{"input_ids": [1, len(tokenizer) - 1]}], LM, tokenizer))


@pytest.mark.parametrize("train_on", ["completion", "assistant", "each-turn", "all"])
def test_options_that_choose_among_texts_do_not_suit_tokens(made, tokenizer, train_on):
    with pytest.raises(SettingsError, match="labels or a loss_mask say which are learnt"):
        made([{"input_ids": [1, 2]}], LM, tokenizer, train_on=train_on)


def test_rows_of_tokens_in_csv(write, made, tokenizer):
    name = write("a.csv", "input_ids,labels", '"[5, 6, 7]","[-100, 6, 7]"')
    assert tokens_of(made([name], LM, tokenizer)) == [([5, 6, 7], [0, 1, 1])]

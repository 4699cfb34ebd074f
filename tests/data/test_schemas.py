"""Roles, columns and per-token marks of every schema."""

import pytest

ASK = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def _texts(example, tokenizer, of):
    return {role: [of(sequence, tokenizer) for sequence in rows] for role, rows in example.sequences.items()}


CASES = [
    ("language-modeling", {"text": "ab", "id": 7}, {"completion": ["b</s>"]}, {"id": 7}),
    ("prompt-completion", {"prompt": "p", "completion": "c"}, {"completion": ["c</s>"]}, {}),
    ("prompt-completion", {"prompt": "", "completion": "cd"}, {"completion": ["d</s>"]}, {}),
    (
        "preference",
        {"prompt": "p", "chosen": "c", "rejected": "r", "margin": 2},
        {"chosen": ["c</s>"], "rejected": ["r</s>"]},
        {"margin": 2},
    ),
    (
        "unpaired-preference",
        {"prompt": "p", "completion": "c", "label": 1},
        {"completion": ["c</s>"]},
        {"label": True},
    ),
    ("scored", {"prompt": "p", "completion": "c", "score": 0.5}, {"completion": ["c</s>"]}, {"score": 0.5}),
    (
        "scored",
        {"prompt": "p", "completions": ["c"], "scores": [1]},
        {"completion": ["c</s>"]},
        {"score": 1, "group_scores": [1]},
    ),
    ("ranked", {"prompt": "p", "completions": ["c", "d"]}, {"completion": ["c</s>", "d</s>"]}, {}),
    ("trajectory", {"messages": [ASK, ANSWER], "score": 1.0}, {"completion": ["a<|im_end|>"]}, {"score": 1.0}),
    (
        "forget-retain",
        {"forget": {"prompt": "p", "completion": "f"}, "retain": "rr"},
        {"forget": ["f</s>"], "retain": ["r</s>"]},
        {},
    ),
    ("forget-retain", {"forget": [ASK, ANSWER], "retain": "rr"}, {"forget": ["a<|im_end|>"], "retain": ["r</s>"]}, {}),
    (
        "preference",
        {"prompt": [ASK], "chosen": [ANSWER], "rejected": [{"role": "assistant", "content": "b"}]},
        {"chosen": ["a<|im_end|>"], "rejected": ["b<|im_end|>"]},
        {},
    ),
    ("ranked", {"prompt": [ASK], "completions": [[ANSWER], [ANSWER]]}, {"completion": ["a<|im_end|>"] * 2}, {}),
    ("stepwise", {"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}, {"completion": ["a\nb\n"]}, {}),
]


@pytest.mark.parametrize(("schema", "row", "roles", "columns"), CASES)
def test_roles_and_columns(made, learnt, tokenizer, schema, row, roles, columns):
    (example,) = made([row], schema, tokenizer, "<|im_end|>")
    assert _texts(example, tokenizer, learnt) == roles
    assert example.columns == columns
    assert not any(sequence.trained[0] for rows in example.sequences.values() for sequence in rows)


@pytest.mark.parametrize("form", ["plain", "conversational"])
def test_steps_are_marked_at_their_last_token(made, tokenizer, text_of, form):
    """The marks follow from the text: the line break behind each step, and its label on the same token."""
    prompt, stop = ("p", "</s>") if form == "plain" else ([ASK], "<|im_end|>")
    row = {"prompt": prompt, "completions": ["ab", "c\n", "d"], "labels": [1, 0, 0.5]}
    (example,) = made([row], "stepwise", tokenizer, stop)
    (sequence,) = example.sequences["completion"]
    tokens = [tokenizer.decode([token]) for token in sequence.ids[sequence.trained].tolist()]
    ends = [index for index, end in enumerate(sequence.per_token["step_end"].tolist()) if end]
    assert [tokens[index] for index in ends] == ["\n", "\n", "\n"]
    assert "".join(tokens[: ends[-1] + 1]) == "ab\nc\nd\n"
    assert [sequence.per_token["step_label"][index].item() for index in ends] == [1, 0, 0.5]
    assert len(sequence.per_token["step_end"]) == sequence.count


def test_prompts_keep_every_column_and_train_nothing(made, text_of, build):
    """T13: the ids are those of the rendered prompt, special tokens included."""
    tokenizer = build("tools")
    row = {"prompt": [ASK], "answer": "42", "tools": [{"name": "add"}]}
    (example,) = made([row], "prompt", tokenizer)
    (sequence,) = example.sequences["prompt"]
    rendered = 'TOOLS[{"name": "add"}]\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n'
    assert text_of(sequence, tokenizer) == rendered
    assert sequence.count == 0
    assert example.columns == {**row, "prompt_text": rendered}
    (example,) = made([{"prompt": "plain "}], "prompt", tokenizer)
    assert text_of(example.sequences["prompt"][0], tokenizer) == example.columns["prompt_text"] == "plain "


def test_system_prompt_where_there_is_none(made, tokenizer):
    own = {"role": "system", "content": "own"}
    rows = [{"prompt": [ASK]}, {"prompt": [own, ASK]}]
    texts = [example.columns["prompt_text"] for example in made(rows, "prompt", tokenizer, system_prompt="new")]
    assert texts[0].startswith("<|im_start|>system\nnew<|im_end|>\n<|im_start|>user\nq")
    assert texts[1].startswith("<|im_start|>system\nown<|im_end|>\n<|im_start|>user\nq")
    (example,) = made([{"prompt": "q"}], "prompt", tokenizer, system_prompt="new")
    assert example.columns["prompt_text"] == texts[0]
    assert example.columns["prompt"] == "q"

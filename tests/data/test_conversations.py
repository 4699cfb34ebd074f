"""Conversations as data sets have them: from/value pairs, calls as JSON text, instructions, answers not learnt."""

import json

import pytest
from posttrain.data import read_rows
from posttrain.data.check import describe_rows
from posttrain.errors import DataError
from posttrain.settings import Settings

LM = ("language-modeling",)
ASK, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def one(row, schema="language-modeling"):
    rows = read_rows([row], (schema,), Settings().data)
    return rows[0], rows.notes


def turns(*pairs):
    return [{"from": speaker, "value": text} for speaker, text in pairs]


def call(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("speaker", "role"),
    [
        ("human", "user"),
        ("user", "user"),
        ("gpt", "assistant"),
        ("chatgpt", "assistant"),
        ("model", "assistant"),
        ("system", "system"),
        ("observation", "tool"),
        ("function", "tool"),
        ("tool", "tool"),
        ("tool_response", "tool"),
    ],
)
def test_speakers_are_roles(speaker, role):
    row, _ = one({"conversations": [*turns(("human", "q"), (speaker, "x"), ("gpt", "a"))]})
    assert [message["role"] for message in row["messages"]] == ["user", role, "assistant"]


@pytest.mark.parametrize("name", ["function_call", "tool_call"])
def test_calls_are_calls(name):
    text = json.dumps({"name": "add", "arguments": {"x": 1}})
    several = json.dumps([{"name": "add", "arguments": {"x": 1}}, {"name": "say"}])
    for given, calls in ((text, [call("add", {"x": 1})]), (several, [call("add", {"x": 1}), call("say", {})])):
        spoken = turns(("human", "q"), (name, given), ("observation", "1"), ("gpt", "a"))
        row, notes = one({"conversations": spoken, "tools": json.dumps([{"name": "add"}]), "system": "s"})
        assert row == {
            "tools": [{"name": "add"}],
            "messages": [
                {"role": "system", "content": "s"},
                ASK,
                {"role": "assistant", "content": "", "tool_calls": calls},
                {"role": "tool", "content": "1"},
                ANSWER,
            ],
        }
        assert notes == [
            "column 'conversations' read as messages (1 row)",
            "column 'system' read as the system message (1 row)",
        ]


def test_a_call_that_is_no_json_is_refused():
    with pytest.raises(DataError) as refused:
        one({"conversations": turns(("human", "q"), ("function_call", "add(1)"))})
    assert str(refused.value) == (
        "data row 1: column 'conversations' has a call in message 2 that is no JSON of a name and arguments: 'add(1)'."
    )


def test_pairs_in_the_same_form():
    """The ranking form of LLaMA-Factory: a conversation, and one turn for each answer."""
    row = {"conversations": turns(("human", "q")), "chosen": turns(("gpt", "a"))[0], "rejected": turns(("gpt", "b"))[0]}
    read, _ = one(row, "preference")
    assert read == {"prompt": [ASK], "chosen": [ANSWER], "rejected": [{"role": "assistant", "content": "b"}]}


def test_instructions_are_prompts():
    row, notes = one({"instruction": "Add.", "input": "1 1", "output": "2", "id": 3}, "prompt-completion")
    assert row == {"id": 3, "prompt": "Add.\n\n1 1", "completion": "2"}
    assert notes == ["columns instruction, input and output read as prompt and completion (1 row)"]
    row, _ = one({"instruction": "Add.", "input": "", "output": "2"}, "prompt-completion")
    assert row == {"prompt": "Add.", "completion": "2"}


@pytest.mark.parametrize("first", [[], [{"role": "system", "content": "own"}]])
def test_a_column_system_is_the_system_message(made, tokenizer, text_of, first):
    rows = [{"messages": [*first, ASK, ANSWER], "system": "s"}]
    prepared = made(rows, LM, tokenizer, "<|im_end|>")
    said = "own" if first else "s"
    assert text_of(prepared[0].sequences["completion"][0], tokenizer).startswith(
        f"<|im_start|>system\n{said}<|im_end|>\n<|im_start|>user\nq"
    )


@pytest.mark.parametrize("weights", [(0, 1), (1, 0), (None, 1), (0, None)])
@pytest.mark.parametrize("train_on", [None, "each-turn"])
def test_messages_of_weight_0_are_read_and_not_learnt(made, tokenizer, learnt, weights, train_on):
    answers = [{"role": "assistant", "content": text, "weight": w} for text, w in zip("ab", weights, strict=True)]
    prepared = made([{"messages": [ASK, answers[0], ASK, answers[1]]}], LM, tokenizer, "<|im_end|>", train_on=train_on)
    found = [learnt(example.sequences["completion"][0], tokenizer) for example in prepared]
    wanted = [f"{text}<|im_end|>" for text, weight in zip("ab", weights, strict=True) if weight != 0]
    assert "".join(found) == "".join(wanted)


def test_a_row_without_anything_to_learn_is_counted(made, tokenizer):
    rows = [{"messages": [ASK, ANSWER]}, {"messages": [ASK, {**ANSWER, "weight": 0}]}]
    prepared = made(rows, LM, tokenizer, "<|im_end|>")
    assert (len(prepared), prepared.report["dropped"]) == (1, {"nothing to learn": 1})
    with pytest.raises(DataError, match=r"has weight 0\.5 in message 2, expected 0 \(not learnt\) or 1"):
        one({"messages": [ASK, {**ANSWER, "weight": 0.5}]})


def test_columns_that_no_schema_knows_are_named_once():
    rows = read_rows([{"text": "a", "id": 1, "source": "x"}, {"text": "b", "id": 2}], LM, Settings().data)
    assert describe_rows(rows)["notes"] == [
        "not learnt, since no language-modeling row has them: id, source (they stay beside the tokens, for the method)"
    ]
    prompts = read_rows([{"prompt": "a", "answer": "1"}], ("prompt",), Settings().data)
    assert describe_rows(prompts)["notes"] == []

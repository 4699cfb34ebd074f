"""``posttrain check-data`` and ``posttrain generate`` as commands: what programs get from them."""

import json

import pytest
from posttrain.cli.main import main
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

#: A word that a variable of the template turns into another one.
SWITCHED = (
    "{% for message in messages %}{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if thinking is defined and not thinking %}h{% else %}a{% endif %}"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A tiny model with its tokenizer, and files of rows; the command runs beside them."""
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")

    def write(name, *rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    write("train.jsonl", {"prompt": "ab", "completion": "cd"}, {"prompt": "b", "completion": "a"})
    write("test.jsonl", {"prompt": "ab", "completion": "cd"}, {"prompt": "b", "completion": "h"})
    write("ids.jsonl", {"input_ids": [4, 5, 6], "labels": [-100, 5, 6]})
    write("other.jsonl", {"input_ids": [4, 99]})
    return tmp_path


def output(capsys, command, *words):
    assert main([*command.split(), *words]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_check_data_for_programs(folder, capsys):
    """The tokenizer's tokens by hand: letters count from 4, and 2 ends an answer."""
    found = output(capsys, "check-data train.jsonl --method sft --model model --show 1 --json")
    assert (found["schema"], found["rows"], found["tokens"]["trained_tokens"]) == ("prompt-completion", 2, 5)
    (sequence,) = found["examples"][0]["sequences"]["completion"]
    assert sequence["ids"] == [4, 5, 6, 7, 2]
    assert sequence["spans"] == [{"start": 2, "end": 5, "text": "cd</s>"}]
    assert len(found["examples"]) == 1


def test_check_data_of_tokens(folder, capsys):
    found = output(capsys, "check-data ids.jsonl --method sft --model model --show 2 --json")
    assert (found["form"], found["tokens"]["trained_tokens"]) == ("tokens", 2)
    (sequence,) = found["examples"][0]["sequences"]["completion"]
    assert sequence == {"text": "abc", "ids": [4, 5, 6], "spans": [{"start": 1, "end": 3, "text": "bc"}]}
    assert main(["check-data", "other.jsonl", "--method", "sft", "--model", "model"]) == 2
    assert capsys.readouterr().err.startswith(
        "other.jsonl line 1: has token 99 at place 1, and the tokenizer knows 13."
    )


def test_check_data_compares_held_out_rows(folder, capsys):
    found = output(capsys, "check-data train.jsonl --method sft --eval-data seen=test.jsonl --json")
    assert found["held_out"] == {
        "seen": {
            "rows": 2,
            "exact": 1,
            "same_prompt": 1,
            "near": 0,
            "first": [
                "exact: test.jsonl line 1 is train.jsonl line 1",
                "prompt: test.jsonl line 2 is train.jsonl line 2",
            ],
        }
    }
    found = output(capsys, "check-data train.jsonl --method sft --eval-fraction 0.5 --seed 3 --json")
    assert found["held_out"] == {"eval": {"rows": 1, "exact": 0, "same_prompt": 0, "near": 0}}


@pytest.mark.parametrize(("words", "asked"), [([], "ba"), (["--chat-template-kwargs", "thinking=false"], "bh")])
def test_generate_tells_the_template(folder, capsys, words, asked):
    """What is answered is transformers' own continuation of the text that the template writes."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = SWITCHED
    tokenizer.save_pretrained("model")
    found = output(capsys, "generate model --prompt b --max-new-tokens 6 --json", *words)
    ids = tokenizer(asked, add_special_tokens=False, return_tensors="pt")["input_ids"]
    whole = tiny_model().eval().generate(ids, do_sample=False, max_new_tokens=6, pad_token_id=0, eos_token_id=2)
    assert found == [
        {"prompt": "b", "completion": tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)}
    ]

"""Every text that bad files and sets of rows get, exactly; that of single rows: test_bad_rows.py."""

import pytest
from posttrain.data import read_rows
from posttrain.errors import DataError, ModelError, SettingsError
from posttrain.settings import Settings

PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
ASK = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("empty.jsonl", b"", "empty.jsonl: is empty, expected at least one row."),
        ("empty.json", b"[]", "empty.json: is empty, expected at least one row."),
        (
            "deep.jsonl",
            b'{"prompt": ' + b"[" * 100_000,
            "deep.jsonl line 1: invalid JSON (nested too deeply). Expected one object with a column per key.",
        ),
        (
            "deep.json",
            b"[" * 100_000,
            "deep.json: invalid JSON (nested too deeply). Expected one object with a column per key.",
        ),
        (
            "digits.jsonl",
            b'{"prompt": "p", "completion": "c", "score": -' + b"1" * 5001 + b"}",
            "digits.jsonl line 1: column 'score' has a whole number of more than 4300 digits, expected a finite "
            "number.",
        ),
        (
            "digits.json",
            b"[" + b"1" * 5001 + b"]",
            "digits.json: a whole number of more than 4300 digits, expected a finite number.",
        ),
        ("head.csv", b"text\n", "head.csv: is empty, expected at least one row."),
        (
            "latin.jsonl",
            b'{"text": "a"}\n{"text": "\xe9"}\n',
            "latin.jsonl line 2: byte 11 (0xe9) is not valid UTF-8. Convert the file, for example with: "
            "iconv -f latin1 -t utf-8 latin.jsonl",
        ),
        (
            "broken.jsonl",
            b'{"text": "a"}\n{"text": "b"\n',
            "broken.jsonl line 2, column 1: invalid JSON (Expecting ',' delimiter). "
            "Expected one object with a column per key.",
        ),
        (
            "broken.json",
            b'[\n{"text" "b"}]',
            "broken.json line 2, column 9: invalid JSON (Expecting ':' delimiter). "
            "Expected one object with a column per key.",
        ),
        ("list.jsonl", b"[1]\n", "list.jsonl line 1: is a list, expected an object with a column per key."),
        ("short.csv", b"text,id\na,1\nb\n", "short.csv line 3: has 1 fields, but the header has 2."),
    ],
)
def test_a_bad_file_is_named_with_the_place(write, name, content, text):
    with pytest.raises(DataError) as caught:
        read_rows([write(name, content)], ("language-modeling",), Settings().data)
    assert str(caught.value) == text


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_file_of_another_format_is_refused(write, suffix):
    with pytest.raises(DataError, match=rf"^fake\.{suffix}: is not a readable {suffix.capitalize()} file \("):
        read_rows([write(f"fake.{suffix}", b"no such thing at all")], ("language-modeling",), Settings().data)


def test_mixed_schemas_in_one_file(write):
    name = write("mixed.jsonl", {"text": "a"}, {"prompt": "p", "completion": "c"})
    with pytest.raises(DataError) as caught:
        read_rows([name], ("language-modeling", "prompt-completion"), Settings().data)
    assert str(caught.value) == (
        "mixed.jsonl line 2: fits schema 'prompt-completion' (prompt, completion), but line 1 fits "
        "'language-modeling' (text). Expected one schema per file: split the file."
    )


def test_mixed_forms_in_one_file(write):
    row = {"prompt": [ASK], "completion": [ANSWER]}
    name = write("mixed.jsonl", {"prompt": "p", "completion": "c"}, row)
    with pytest.raises(DataError) as caught:
        read_rows([name], ("prompt-completion",), Settings().data)
    assert str(caught.value) == (
        "mixed.jsonl line 2: column 'prompt' is messages, but text in line 1. "
        "Expected one form per file: split the file."
    )


def test_two_files_with_two_schemas(write):
    files = [write("a.jsonl", {"text": "a"}), write("b.jsonl", {"prompt": "p", "completion": "c"})]
    with pytest.raises(DataError) as caught:
        read_rows(files, ("language-modeling", "prompt-completion"), Settings().data)
    assert str(caught.value) == (
        "b.jsonl: has schema 'prompt-completion', but a.jsonl has 'language-modeling'. "
        "Expected the same schema in all data of a run."
    )


def test_a_file_that_is_not_there(write):
    write("prefs.jsonl", PAIR)
    with pytest.raises(DataError) as caught:
        read_rows(["pref.jsonl"], ("preference",), Settings().data)
    assert str(caught.value) == "pref.jsonl: no such file. Did you mean 'prefs.jsonl'?"


def test_an_unknown_suffix_and_an_empty_folder(write, tmp_path):
    suffixes = ".jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow"
    with pytest.raises(DataError) as caught:
        read_rows([write("data.xml", "<a/>")], ("preference",), Settings().data)
    assert str(caught.value) == f"data.xml: the suffix '.xml' is unknown. Data files end in {suffixes}."
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError) as caught:
        read_rows(["folder"], ("preference",), Settings().data)
    assert str(caught.value) == f"folder: the folder holds no data file. Data files end in {suffixes}."


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "much"])
def test_a_weight_that_is_no_weight(write, weight):
    name = write("a.jsonl", {"text": "a"})
    with pytest.raises(SettingsError) as caught:
        read_rows([f"{name}={weight}"], ("language-modeling",), Settings().data)
    assert str(caught.value) == (
        f"data 'a.jsonl={weight}': weight '{weight}' is not a number above 0. Write for example: a.jsonl=2"
    )


def test_a_renamed_column_that_is_missing(write):
    name = write("a.jsonl", {"q": "p", "completion": "c"})
    with pytest.raises(DataError) as caught:
        read_rows([name], ("prompt-completion",), Settings(columns={"prompt": "question"}).data)
    assert str(caught.value) == (
        "a.jsonl line 1: column 'question', which --columns names for 'prompt', is missing. The row has: q, completion."
    )


def test_rows_in_memory():
    with pytest.raises(DataError) as caught:
        read_rows([PAIR, "x"], ("preference",), Settings().data)
    assert str(caught.value) == "data row 2: is 'x', expected a dictionary with a column per key."
    with pytest.raises(DataError) as caught:
        read_rows([], ("preference",), Settings().data, what="eval-data")
    assert str(caught.value) == "eval-data is an empty list, expected at least one file or row."
    with pytest.raises(DataError) as caught:
        read_rows([PAIR, {}], ("preference",), Settings().data, what="eval-data")
    assert str(caught.value).startswith("eval-data row 2: column 'chosen' is missing.")


def test_every_row_dropped(write, tokenizer, made):
    name = write("long.jsonl", {"text": "abcdef"}, {"text": "abcdefgh"})
    with pytest.raises(DataError) as caught:
        made([name], "language-modeling", tokenizer, max_length=4, truncation="drop")
    assert str(caught.value) == (
        "long.jsonl: none of 2 rows is left (2 too long; the limit is 4 tokens). Raise --max-length."
    )


def test_truncation_error_names_the_row(write, tokenizer, made):
    name = write("long.jsonl", {"text": "ab"}, {"text": "abcdef"})
    with pytest.raises(DataError) as caught:
        made([name], "language-modeling", tokenizer, max_length=4, truncation="error")
    assert str(caught.value) == (
        "long.jsonl line 2: has 7 tokens, more than the 4 that max-length allows. "
        "Raise --max-length, or choose --truncation keep-prompt-end or drop."
    )


def test_messages_without_a_template(tokenizer, made):
    tokenizer.chat_template = None
    with pytest.raises(ModelError) as caught:
        made([{"messages": [ASK, ANSWER]}], "language-modeling", tokenizer)
    assert str(caught.value) == (
        "data row 1: messages need a chat template, and the tokenizer has none. "
        "Give one with --chat-template FILE, or use text columns."
    )


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"prompt": "p", "images": ["a.png"]}, "images"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]}]}, "image"),
    ],
)
def test_images_are_refused_before_training(tokenizer, row, found, made):
    """T14: nothing of an image is silently dropped or cut."""
    with pytest.raises(ModelError) as caught:
        made([row], "prompt", tokenizer)
    assert str(caught.value) == (
        f"data row 1: the row has '{found}', but the model is loaded as a text model without an image processor. "
        "Remove these rows, or the column, from the data."
    )


def test_train_on_that_the_data_cannot_follow(tokenizer, made):
    with pytest.raises(SettingsError) as caught:
        made([{"text": "a"}], "language-modeling", tokenizer, train_on="assistant")
    assert str(caught.value) == "train-on 'assistant' needs messages, but data row 1 has text. Leave train-on out."
    with pytest.raises(SettingsError) as caught:
        made([PAIR], "preference", tokenizer, train_on="all")
    assert str(caught.value) == (
        "train-on 'all' does not suit schema 'preference', whose loss compares completions. Leave train-on out."
    )


def test_no_room_for_a_prompt(tokenizer, made):
    with pytest.raises(SettingsError) as caught:
        made([{"prompt": "p"}], "prompt", tokenizer, max_length=16, max_new_tokens=16)
    assert str(caught.value) == (
        "max-length 16 leaves no room for a prompt beside max-new-tokens 16. "
        "Raise --max-length above 16, or lower --max-new-tokens."
    )


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
@pytest.mark.parametrize(
    "content", [b"", b"ARROW1\0\0" * 50, bytes(range(256)) * 16, b"\xff\xff\xff\xff\xff\xff\xff\x7f" * 9]
)
def test_noise_in_a_binary_file_is_one_line(tmp_path, suffix, content):
    path = tmp_path / f"noise.{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_rows([str(path)], ("prompt",), Settings().data)
    text = str(caught.value)
    assert text.startswith(f"{path}: is ")
    assert len(text.splitlines()) == 1
    assert len(text) < 400


def test_a_row_that_a_program_gives_is_shortened(tmp_path):
    with pytest.raises(DataError) as caught:
        read_rows(["y" * 100_000, 3], ("prompt",), Settings().data)
    assert len(str(caught.value)) < 200

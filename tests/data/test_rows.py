"""Reading: formats, names, weights, limits, streaming, conversions."""

import json
import subprocess
import sys

import datasets
import pyarrow
import pytest
from posttrain.catalogue.cards import SCHEMAS
from posttrain.data import read_rows
from posttrain.data.sources import split_weight
from posttrain.errors import DataError
from posttrain.settings import Settings
from pyarrow import parquet

ROWS = [
    {"prompt": "a", "completion": "eins", "label": True, "note": "é"},
    {"prompt": "b\nc", "completion": 'zwei, "drei"', "label": False, "note": ""},
]
ASK = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def _write(folder, kind):
    path = folder / f"rows.{kind}"
    table = pyarrow.Table.from_pylist(ROWS)
    if kind in ("jsonl", "ndjson"):
        path.write_text("\ufeff" + "".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in ROWS), "utf-8")
    elif kind == "json":
        path.write_text(json.dumps({"data": ROWS}))
    elif kind == "csv":
        path.write_text('prompt,completion,label,note\na,eins,true,é\n"b\nc","zwei, ""drei""",False,\n', "utf-8")
    elif kind == "tsv":
        path.write_text('prompt\tcompletion\tlabel\tnote\na\teins\t1\té\n"b\nc"\t"zwei, ""drei"""\t0\t\n', "utf-8")
    elif kind == "parquet":
        parquet.write_table(table, path)
    elif kind == "arrow":
        with pyarrow.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize(
    ("kind", "origins"),
    [
        ("jsonl", ["line 1", "line 3"]),
        ("ndjson", ["line 1", "line 3"]),
        ("json", ["row 1", "row 2"]),
        ("csv", ["line 2", "line 3"]),
        ("tsv", ["line 2", "line 3"]),
        ("parquet", ["row 1", "row 2"]),
        ("arrow", ["row 1", "row 2"]),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, kind, origins):
    path = _write(tmp_path, kind)
    rows = read_rows([str(path)], ("unpaired-preference",), Settings().data)
    assert list(rows) == ROWS
    assert [rows.origin(index) for index in range(2)] == [f"{path} {origin}" for origin in origins]


def test_arrow_file_format_and_json_lines_under_json(tmp_path):
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_file(tmp_path / "file.arrow", table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name in ("file.arrow", "lines.json"):
        assert list(read_rows([str(tmp_path / name)], ("unpaired-preference",), Settings().data)) == ROWS


def test_datasets_objects_and_saved_folders(tmp_path):
    data = datasets.Dataset.from_list(ROWS)
    assert list(read_rows(data, ("unpaired-preference",), Settings().data)) == ROWS
    data.save_to_disk(tmp_path / "saved")
    assert list(read_rows([str(tmp_path / "saved")], ("unpaired-preference",), Settings().data)) == ROWS
    splits = datasets.DatasetDict({"train": data})
    assert list(read_rows(splits, ("unpaired-preference",), Settings().data)) == ROWS
    streamed = read_rows(data.to_iterable_dataset(), ("unpaired-preference",), Settings().data)
    assert streamed.streaming
    assert list(streamed) == list(streamed) == ROWS


def test_a_folder_of_files(tmp_path, write):
    write("b.jsonl", {"text": "b"})
    write("a.jsonl", {"text": "a"})
    rows = read_rows([str(tmp_path)], ("language-modeling",), Settings().data)
    assert [row["text"] for row in rows] == ["a", "b"]


def test_columns_are_renamed(write):
    name = write("a.jsonl", {"question": "p", "answer": "c", "prompt": "an old one"})
    rows = read_rows(
        [name], ("prompt-completion",), Settings(columns={"prompt": "question", "completion": "answer"}).data
    )
    assert rows[0] == {"prompt": "p", "completion": "c"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a.jsonl", ("a.jsonl", 1.0)),
        ("a.jsonl=2", ("a.jsonl", 2.0)),
        ("reasoning-gym:sum?size=500", ("reasoning-gym:sum?size=500", 1.0)),
        ("reasoning-gym:sum?size=500&seed=1=0.5", ("reasoning-gym:sum?size=500&seed=1", 0.5)),
    ],
)
def test_weights_and_options_have_one_sign(text, found):
    assert split_weight(text) == found


def test_weights_repeat_and_sample(write):
    first = write("a.jsonl", *({"text": f"a{i}"} for i in range(4)))
    second = write("b.jsonl", *({"text": f"b{i}"} for i in range(4)))
    rows = read_rows([f"{first}=2.5", f"{second}=0.5"], ("language-modeling",), Settings().data)
    texts = [row["text"] for row in rows]
    counts = [texts.count(f"a{i}") for i in range(4)]
    assert sorted(counts) == [2, 2, 3, 3]
    assert sum(texts.count(f"b{i}") for i in range(4)) == 2
    assert rows.origin(texts.index("a3")) == "a.jsonl line 4"
    again = read_rows([f"{first}=2.5", f"{second}=0.5"], ("language-modeling",), Settings().data)
    assert texts == [row["text"] for row in again]


def test_limit_takes_the_first_rows(write):
    name = write("a.jsonl", *({"text": f"a{i}"} for i in range(4)), "not json\n")
    for streaming in (False, True):
        rows = read_rows([name], ("language-modeling",), Settings(limit=3, streaming=streaming).data)
        assert [row["text"] for row in rows] == ["a0", "a1", "a2"]


def test_streamed_sources_take_turns_by_weight(write):
    first = write("a.jsonl", *({"text": "a"} for _ in range(4)))
    second = write("b.jsonl", *({"text": "b"} for _ in range(2)))
    rows = read_rows([f"{first}=2", second], ("language-modeling",), Settings(streaming=True).data)
    assert "".join(row["text"] for row in rows) == "abaaba" + "aaaa"  # a weight of 2 reads its rows twice
    with pytest.raises(TypeError, match="no length"):
        len(rows)


def test_fingerprint_follows_content_not_name(write):
    def fingerprint(names, **options):
        return read_rows(names, ("language-modeling",), Settings(**options).data).fingerprint

    first, copy = write("a.jsonl", {"text": "a"}), write("b.jsonl", {"text": "a"})
    other = write("c.jsonl", {"text": "b"})
    assert fingerprint([first]) == fingerprint([copy])
    different = [
        fingerprint([first]),
        fingerprint([other]),
        fingerprint([first, other]),
        fingerprint([f"{first}=2"]),
        fingerprint([first], limit=1),
        fingerprint([{"text": "c"}]),
        fingerprint([{"text": "d"}]),
    ]
    assert len(set(different)) == len(different)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        # P9: never inside a word, and the space goes with the word behind it.
        ("The sky is blue.", "The sky is black.", "The sky is"),
        ("Q? A: yes", "Q? A: no", "Q? A:"),
        ("one", "two", ""),
        ("same", "same", ""),
        ("go on", "go on and on", "go"),
        ("1+1=2", "1+1=3", "1+1="),
    ],
)
def test_implicit_prompt_of_texts(chosen, rejected, prompt):
    rows = read_rows([{"chosen": chosen, "rejected": rejected}], ("preference",), Settings().data)
    assert rows[0] == {"prompt": prompt, "chosen": chosen[len(prompt) :], "rejected": rejected[len(prompt) :]}
    assert rows.notes == ["implicit prompts extracted from chosen and rejected (1 row)"]


def test_implicit_prompt_of_messages():
    """P9: whole messages, and the last one stays even where both are equal."""
    other = {"role": "assistant", "content": "b"}
    rows = read_rows(
        [
            {"chosen": [ASK, ANSWER, ASK, ANSWER], "rejected": [ASK, ANSWER, ASK, other]},
            {"chosen": [ASK, ANSWER], "rejected": [ASK, ANSWER]},
            {"prompt": "q", "chosen": [ASK, ANSWER], "rejected": [ASK, other]},
        ],
        ("preference",),
        Settings().data,
    )
    assert rows[0] == {"prompt": [ASK, ANSWER, ASK], "chosen": [ANSWER], "rejected": [other]}
    assert rows[1] == {"prompt": [ASK], "chosen": [ANSWER], "rejected": [ANSWER]}
    assert rows[2] == {"prompt": [ASK], "chosen": [ANSWER], "rejected": [other]}


ASKED = "What is 2 + 2?"


@pytest.mark.parametrize(
    ("schema", "repeated", "others"),
    [
        (
            "preference",
            {"prompt": ASKED, "chosen": f"{ASKED} 4", "rejected": f"\n{ASKED} 5"},
            [
                {"prompt": ASKED, "chosen": f"{ASKED} 4", "rejected": "5"},
                {"prompt": "a", "chosen": "ab", "rejected": "ac"},
            ],
        ),
        (
            "preference",
            {"prompt": [ASK], "chosen": [ASK, ANSWER], "rejected": [ASK, ANSWER]},
            [{"prompt": [ASK], "chosen": [ANSWER], "rejected": [ASK, ANSWER]}],
        ),
        ("prompt-completion", {"prompt": ASKED, "completion": ASKED + "4"}, [{"prompt": ASKED, "completion": "4"}]),
        (
            "ranked",
            {"prompt": ASKED, "completions": [ASKED + "4", ASKED + "5"]},
            [{"prompt": ASKED, "completions": [ASKED + "4", "5"]}],
        ),
    ],
)
def test_answers_that_begin_with_the_prompt_are_counted(schema, repeated, others):
    """All answers of a row must, and with more than a word: an answer may begin with one letter by chance."""
    rows = read_rows([repeated, *others, repeated], (schema,), Settings().data)
    said = "prompts repeated at the beginning of the answers: the model would read, or learn, them twice"
    assert rows.notes == [f"{said} (2 rows)"]
    assert read_rows(others, (schema,), Settings().data).notes == []


def test_conversions_are_made_and_said():
    pair = {"prompt": "p", "chosen": "c", "rejected": "r", "source": "x"}
    rows = read_rows([pair], ("unpaired-preference",), Settings().data)
    assert list(rows) == [
        {"prompt": "p", "source": "x", "completion": "c", "label": True},
        {"prompt": "p", "source": "x", "completion": "r", "label": False},
    ]
    assert (rows.schema, rows.notes) == ("unpaired-preference", ["pairs split into good and bad completions (1 row)"])
    rows = read_rows([{"messages": [ASK, ANSWER]}], ("prompt-completion",), Settings().data)
    assert list(rows) == [{"prompt": [ASK], "completion": [ANSWER]}]
    rows = read_rows([{"prompt": "p", "completion": "c"}], ("language-modeling",), Settings().data)
    assert list(rows) == [{"text": "pc"}]
    rows = read_rows([{"prompt": "q", "completion": [ANSWER]}], ("prompt-completion",), Settings().data)
    assert list(rows) == [{"prompt": [ASK], "completion": [ANSWER]}]
    share = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    assert list(read_rows([share], ("language-modeling",), Settings().data)) == [{"messages": [ASK, ANSWER]}]
    scored = {"prompt": "p", "completions": ["a", "b"], "scores": [0.5, 2], "source": "x"}
    assert list(read_rows([scored], ("scored",), Settings().data)) == [
        {"prompt": "p", "source": "x", "completion": "a", "score": 0.5, "group_scores": [0.5, 2]},
        {"prompt": "p", "source": "x", "completion": "b", "score": 2, "group_scores": [0.5, 2]},
    ]
    ranked = {"prompt": "p", "completions": ["low", "high"], "scores": [0.5, 2]}
    rows = read_rows([ranked], ("ranked",), Settings().data)
    assert rows[0]["completions"] == ["high", "low"]
    assert rows[0]["scores"] == [2, 0.5]


def test_tools_survive_arrow_without_nulls(tmp_path):
    """T15: Arrow gives every tool the keys of all tools, as nulls; they are not the user's."""
    tools = [
        {"name": "add", "parameters": {"x": {"type": "number"}}},
        {"name": "say", "parameters": {"text": {"type": "string"}}},
    ]
    row = {"prompt": [ASK], "tools": tools}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "t.parquet")
    (read,) = read_rows([str(tmp_path / "t.parquet")], ("prompt",), Settings().data)
    assert json.dumps(read["tools"], sort_keys=True) == json.dumps(tools, sort_keys=True)
    (read,) = read_rows([{**row, "tools": json.dumps(tools)}], ("prompt",), Settings().data)
    assert read["tools"] == tools


def test_reading_imports_neither_torch_nor_transformers(write):
    name = write("a.jsonl", {"text": "a"})
    code = (
        "import sys; from posttrain.data import read_rows; from posttrain.settings import Settings; "
        f"read_rows(['{name}'], ('language-modeling',), Settings().data); "
        "sys.exit(' '.join({'torch', 'transformers', 'datasets'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_generated_tasks_are_a_source():
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    rows = read_rows(["reasoning-gym:chain_sum?size=3&seed=1=2"], ("prompt",), Settings().data)
    assert len(rows) == 6
    assert rows[0] == rows[3] != rows[1]
    assert rows.origin(2) == "reasoning-gym:chain_sum?size=3&seed=1 row 3"


def test_a_hub_id_that_cannot_be_loaded(monkeypatch):
    def refuse(*_, **__):
        raise FileNotFoundError("no such dataset.\nmore")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError) as caught:
        read_rows(["some/where"], ("preference",), Settings().data)
    assert str(caught.value) == (
        "some/where: neither a file here nor a dataset that can be loaded from the Hub (no such dataset). "
        "Check the name, the network and --split train."
    )


def test_a_hub_id_is_loaded_through_datasets(monkeypatch):
    asked = []

    def load(*arguments, **options):
        asked.append((arguments, options))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = read_rows(["some/where:de=1"], ("prompt-completion",), Settings(split="test").data)
    assert rows[0]["prompt"] == "a"
    assert asked == [(("some/where", "de"), {"split": "test", "streaming": False})]


@pytest.mark.parametrize(
    ("row", "schema"),
    [
        ({"text": "a"}, "language-modeling"),
        ({"messages": [ASK, ANSWER]}, "language-modeling"),
        ({"prompt": "p"}, "prompt"),
        ({"prompt": "p", "completion": "c"}, "prompt-completion"),
        ({"prompt": "p", "completion": "c", "label": True}, "unpaired-preference"),
        ({"prompt": "p", "completion": "c", "score": 1}, "scored"),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "preference"),
        ({"prompt": "p", "completions": ["c", "d"]}, "ranked"),
        ({"prompt": "p", "completions": ["c"], "labels": [True]}, "stepwise"),
        ({"forget": "f", "retain": "r"}, "forget-retain"),
    ],
)
def test_the_schema_that_needs_most_of_the_columns_is_found(row, schema):
    assert read_rows([row], SCHEMAS, Settings().data).schema == schema

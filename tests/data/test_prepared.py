"""The cache, the order, streaming, and the check-data report."""

import json
from itertools import islice

import pytest
import torch
from posttrain.data import check_data, read_rows, show, stream
from posttrain.data.tokens import preparation
from posttrain.errors import DataError, SettingsError
from posttrain.settings import Settings

ROWS = [{"prompt": f"p{i}", "completion": "c" * (i + 1), "id": i} for i in range(12)]


def _ids(examples):
    return [example.columns["id"] for example in examples]


def _same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a.ids, b.ids) and torch.equal(a.trained, b.trained) and x.columns == y.columns
        for x, y in zip(first, second, strict=True)
        for a, b in zip(x.sequences["completion"], y.sequences["completion"], strict=True)
    )


@pytest.fixture
def counted(monkeypatch):
    """How often rows went through the tokenizer."""
    calls = []
    original = preparation.Encoder.encode

    def encode(self, layouts):
        calls.append(len(layouts))
        return original(self, layouts)

    monkeypatch.setattr(preparation.Encoder, "encode", encode)
    return calls


def test_report_counts_by_hand(made, tokenizer):
    """Row i has 2 (3 from row 10 on) prompt tokens, i + 1 completion tokens and the end."""
    report = made(ROWS, "prompt-completion", tokenizer).report
    trained = sum(i + 2 for i in range(12))
    assert report["trained_tokens"] == trained == 90
    assert report["tokens"] == trained + 10 * 2 + 2 * 3
    assert (report["rows"], report["examples"], report["longest"], report["truncated"]) == (12, 12, 16, 0)


def test_cache_gives_the_same_examples_without_tokenising(made, tokenizer, tmp_path, counted):
    fresh = made(ROWS, "prompt-completion", tokenizer, cache=tmp_path)
    assert counted == [12]
    again = made(ROWS, "prompt-completion", tokenizer, cache=tmp_path)
    assert counted == [12]
    assert _same(fresh, again)
    assert again.report == fresh.report
    assert not list(tmp_path.glob(".writing-*"))


def test_cache_keeps_prompts_and_steps(made, tokenizer, tmp_path, counted):
    steps = {"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}
    for rows, schema in (([{"prompt": "p", "x": 1}], "prompt"), ([steps], "stepwise")):
        first, second = (made(rows, schema, tokenizer, cache=tmp_path)[0] for _ in range(2))
        assert first.columns == second.columns
        ((_, (a,)),), ((_, (b,)),) = first.sequences.items(), second.sequences.items()
        assert all(torch.equal(a.per_token[name], b.per_token[name]) for name in a.per_token)
    assert counted == [1, 1]


def test_cache_is_rebuilt_when_anything_that_matters_changes(made, build, tmp_path, counted):
    """R5: tokenizer, its special tokens, template, stop tokens, options, rows."""
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    variants = [
        lambda: made(rows, "language-modeling", build("chatml"), cache=tmp_path),
        lambda: made(rows, "language-modeling", build("marked"), cache=tmp_path),
        lambda: made(rows, "language-modeling", build("chatml", merges=[("q", "a")]), cache=tmp_path),
        lambda: made(rows, "language-modeling", build("chatml", eos="<|im_end|>"), cache=tmp_path),
        lambda: made(rows, "language-modeling", build("chatml"), "<|im_end|>", cache=tmp_path),
        lambda: made(rows, "language-modeling", build("chatml"), cache=tmp_path, max_length=999),
        lambda: made(rows, "language-modeling", build("chatml"), cache=tmp_path, train_on="all"),
        lambda: made(rows, "language-modeling", build("chatml"), cache=tmp_path, truncation="drop"),
        lambda: made(rows * 2, "language-modeling", build("chatml"), cache=tmp_path),
        lambda: made(rows, "trajectory", build("chatml"), cache=tmp_path),
    ]
    for number, variant in enumerate(variants, 1):
        variant()
        assert len(counted) == number, f"variant {number} was taken from the cache"
    for variant in variants:
        variant()
    assert len(counted) == len(variants)


@pytest.mark.parametrize("damage", ["truncate", "flip", "lose", "about"])
def test_a_damaged_entry_is_rebuilt(made, tokenizer, tmp_path, counted, damage):
    fresh = made(ROWS, "prompt-completion", tokenizer, cache=tmp_path)
    (entry,) = tmp_path.iterdir()
    tokens = entry / "ids.bin"
    content = tokens.read_bytes()
    if damage == "truncate":
        tokens.write_bytes(content[:-3])
    elif damage == "flip":
        tokens.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "lose":
        tokens.unlink()
    else:
        (entry / "about.json").write_text("{}")
    for expected in (2, 2):
        assert _same(fresh, made(ROWS, "prompt-completion", tokenizer, cache=tmp_path))
        assert len(counted) == expected


def test_a_cache_that_cannot_be_written(made, tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"cannot be written .*Choose another with --cache FOLDER or 'off'\.$"):
        made(ROWS, "prompt-completion", tokenizer, cache=tmp_path / "file")


def test_order(made, tokenizer):
    examples = made(ROWS, "prompt-completion", tokenizer)
    assert _ids(examples) == list(range(12))
    mixed = examples.shuffled(1)
    assert sorted(_ids(mixed)) == list(range(12))
    assert _ids(mixed) == _ids(examples.shuffled(1)) != _ids(examples.shuffled(2))
    assert _ids(examples.subset([3, 1])) == [3, 1]
    assert _ids(examples.subset([3, 1]).subset([1])) == [1]
    assert mixed.lengths.tolist() == [example.tokens for example in mixed]
    assert examples[-1].columns["id"] == 11
    with pytest.raises(IndexError):
        examples[12]


def _stream(tokenizer, seed=0, skip=0, **options):
    settings = Settings(streaming=True, max_length=100, **options)
    rows = read_rows(ROWS, ("prompt-completion",), settings.data)
    return stream(rows, tokenizer, settings.data, set(), seed, skip)


def test_streamed_examples_equal_prepared_ones(made, tokenizer):
    assert _same(list(islice(_stream(tokenizer, shuffle=False), 12)), made(ROWS, "prompt-completion", tokenizer))


def test_stream_passes_again_in_another_order_and_resumes(tokenizer, monkeypatch):
    monkeypatch.setattr(preparation, "SHUFFLE_BUFFER", 4)
    whole = _ids(islice(_stream(tokenizer), 36))
    passes = [whole[:12], whole[12:24], whole[24:]]
    assert all(sorted(one) == list(range(12)) for one in passes)
    assert passes[0] != passes[1] != passes[2]
    assert whole != _ids(islice(_stream(tokenizer, seed=1), 36))
    assert _ids(islice(_stream(tokenizer, skip=17), 19)) == whole[17:]


def test_a_stream_that_drops_everything_ends_with_an_error(tokenizer):
    settings = Settings(max_length=2, streaming=True, truncation="drop")
    rows = read_rows(ROWS, ("prompt-completion",), settings.data)
    with pytest.raises(DataError, match="none of 12 rows is left"):
        next(stream(rows, tokenizer, settings.data, set(), 0))


def test_streamed_rows_are_not_prepared(tokenizer):
    settings = Settings(streaming=True)
    with pytest.raises(SettingsError, match="Leave --streaming off"):
        preparation.prepare(
            read_rows(ROWS, ("prompt-completion",), settings.data), tokenizer, settings.data, set(), None
        )


def test_check_data_report(write, tokenizer):
    name = write("pairs.jsonl", {"chosen": "q a", "rejected": "q b", "source": "x"})
    report, prepared = check_data([name], ("preference",), Settings().data, tokenizer, set())
    assert report == {
        "files": ["pairs.jsonl"],
        "schema": "preference",
        "form": "plain",
        "rows": 1,
        "columns": {"prompt": 1, "chosen": 1, "rejected": 1, "source": 1},
        "notes": [
            "implicit prompts extracted from chosen and rejected (1 row)",
            "not learnt, since no preference row has them: source (they stay beside the tokens, for the method)",
        ],
        "tokens": prepared.report,
    }
    json.dumps(report)
    without, nothing = check_data([name], ("preference",), Settings().data)
    assert nothing is None
    assert "tokens" not in without


def test_show_marks_what_is_learnt(made, tokenizer):
    rows = [{"prompt": "a\x1b", "completion": "b\n", "id": 3}] * 3
    examples = made(rows, "prompt-completion", tokenizer)
    text = show(examples, tokenizer, 1, colour=False)
    assert text == "example 1\ncompletion: 5 tokens, 3 learnt\na|\\x1b|[[b|\\n|</s>]]|\nid='3'"
    coloured = show(examples, tokenizer, 2, colour=True)
    assert coloured.count("\x1b[32mb\x1b[0m|") == 2
    assert "\x1b[2ma\x1b[0m|" in coloured


def test_rows_of_many_scripts_and_lengths(made, tokenizer, tmp_path):
    """All fit, and nothing learnt is lost: a byte is a token, and the end is one more."""
    texts = [
        "What is 7 · 8?\n56",
        "Größe",
        "日本語のテキスト",
        "مرحبا",
        "👩🏽‍🚀 emoji",
        "\ttabs\r\n",
        "a" * 3000,
        "é" * 500,
    ]
    rows = [{"question": text[::-1], "answer": text * (1 + place // 8)} for place, text in enumerate(texts * 5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = {"limit": 40, "columns": {"prompt": "question", "completion": "answer"}}
    examples = made([str(tmp_path / "rows.jsonl")], "prompt-completion", tokenizer, max_length=20000, **options)
    assert examples.report["trained_tokens"] == sum(len(row["answer"].encode()) + 1 for row in rows)

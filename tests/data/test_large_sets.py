"""Many rows: several processes and files in the place of memory change neither tokens, report nor messages."""

import itertools
import json
import os
import signal

import numpy as np
import pytest
from posttrain.data import read_rows, row_file
from posttrain.data.row_file import RowFile
from posttrain.data.tokens import array_files, preparation, processes
from posttrain.errors import DataError, RunFailed, SettingsError
from posttrain.settings import Settings

from .conftest import _build


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Seven rows are a part, three go through the tokenizer at once, and ten are enough to judge a template."""
    monkeypatch.setattr(preparation, "_PART", 7)
    monkeypatch.setattr(preparation, "_CHUNK", 3)
    monkeypatch.setattr(preparation, "_ENOUGH", 10)


def prepared(rows, schema="prompt-completion", template=None, cache=None, **options):
    settings = Settings(**options).data
    tokenizer = _build(template)
    found = read_rows(rows, (schema,), settings)
    return preparation.prepare(found, tokenizer, settings, {tokenizer.eos_token_id}, cache)


def equal(first, second):
    assert first.roles == second.roles
    assert first.report == second.report
    assert list(first.arrays) == list(second.arrays)
    for name, values in first.arrays.items():
        assert values.dtype == second.arrays[name].dtype, name
        assert np.array_equal(values, second.arrays[name]), name
    assert [dict(one) for one in first.columns] == [dict(one) for one in second.columns]


SETS = {
    "prompt-completion": [{"prompt": f"p{i}", "completion": "c" * (1 + i % 9), "id": i} for i in range(31)],
    "preference": [{"prompt": f"p{i}", "chosen": "a" * (1 + i % 3), "rejected": "b"} for i in range(22)],
    "prompt": [{"prompt": f"question {i} ü漢", "answer": i} for i in range(23)],
    "stepwise": [{"prompt": "p", "completions": ["x" * (1 + i % 2), "y"], "labels": [True, False]} for i in range(16)],
}


@pytest.mark.parametrize("schema", SETS)
def test_several_processes_give_the_same_bytes(schema, tmp_path):
    alone = prepared(SETS[schema], schema, max_length=300)
    for count, cache in ((2, None), (3, tmp_path / "cache")):
        equal(alone, prepared(SETS[schema], schema, cache=cache, data_processes=count, max_length=300))
    equal(alone, prepared(SETS[schema], schema, cache=tmp_path / "cache", max_length=300))  # read again


def test_they_are_other_processes_and_as_many_as_asked_for(monkeypatch, tmp_path):
    plain = preparation._part

    def noted(rows, pipeline, numbers):
        (tmp_path / f"{os.getpid()}").touch()
        return plain(rows, pipeline, numbers)

    monkeypatch.setattr(preparation, "_part", noted)
    prepared(SETS["prompt-completion"], data_processes=3)
    seen = {int(path.name) for path in tmp_path.iterdir()}
    assert os.getpid() not in seen
    assert 1 <= len(seen) <= 3


@pytest.mark.parametrize("count", [1, 2])
def test_the_first_row_that_is_wrong_is_the_one_that_is_named(count):
    rows = [{"prompt": "p", "completion": "c" * (50 if i in (12, 29) else 1)} for i in range(35)]
    with pytest.raises(DataError, match=r"data row 13: has 52 tokens, more than the 20"):
        prepared(rows, max_length=20, truncation="error", data_processes=count)


def test_the_share_of_lost_rows_is_judged_alike():
    """Thinking templates drop earlier answers: every row loses one, and the message counts the same rows."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x~y"}] * 2
    rows = [{"messages": turns} for _ in range(30)]
    said = []
    for count in (1, 2):
        with pytest.raises(DataError) as error:
            prepared(rows, "language-modeling", "thinking", data_processes=count, train_on="assistant")
        said.append(str(error.value))
    assert said[0] == said[1]
    assert "14 of 14 examples lose something" in said[0]  # two parts: the first that has ten rows and more


def test_a_process_that_dies_is_said(monkeypatch):
    def dies(rows, pipeline, numbers):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(preparation, "_part", dies)
    with pytest.raises(RunFailed, match=r"One of 2 processes .* was ended.*--data-processes 1"):
        prepared(SETS["prompt-completion"], data_processes=2)


def test_how_many_processes_there_are(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(processes.sys, "platform", "linux")
    assert processes.usual_processes() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert processes.usual_processes() == 2
    monkeypatch.setattr(processes.sys, "platform", "darwin")
    assert processes.usual_processes() == 1
    with pytest.raises(SettingsError, match="data-processes is 0"):
        Settings(data_processes=0).data.check()


VALUES = [{"a": 1.5e300, "b": [None, True, {"c": "\udcff ü 漢"}]}, {}, {"n": float("inf"), "i": 10**40}, {"t": ""}]


def test_rows_on_disk_come_back_as_they_were(monkeypatch):
    monkeypatch.setattr(row_file, "_BUFFER", 30)
    rows = RowFile()
    for row in itertools.islice(itertools.cycle(VALUES), 11):
        rows.append(row)
    assert len(rows) == 11
    assert [rows[place] for place in (0, 3, 10, -1)] == [VALUES[0], VALUES[3], VALUES[2], VALUES[2]]
    assert rows[1:9:4] == [VALUES[1], VALUES[1]]
    chosen = rows.chosen([5, 0, 5])
    assert list(chosen) == [VALUES[1], VALUES[0], VALUES[1]]
    assert list(chosen.chosen([1])) == [VALUES[0]]
    with pytest.raises(IndexError):
        rows[11]


def test_large_files_are_read_as_small_ones_are(monkeypatch, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in SETS["prompt-completion"]))
    small = prepared([str(file)], data_processes=2)
    monkeypatch.setattr(row_file, "LARGE", 1)
    monkeypatch.setattr(array_files, "_LARGE", 1)
    settings = Settings(data=[str(file)]).data
    rows = read_rows([str(file)], ("prompt-completion",), settings)
    assert isinstance(rows._rows, RowFile)
    assert rows.origin(4) == f"{file} line 5"
    assert list(rows.subset([3, 1])) == [SETS["prompt-completion"][3], SETS["prompt-completion"][1]]
    large = prepared([str(file)], data_processes=2, cache=tmp_path / "cache")
    assert isinstance(large.arrays["ids"], np.memmap)
    equal(small, large)
    equal(small, prepared([f"{file}=1"], cache=tmp_path / "cache"))  # mapped from the cache


def test_a_full_disk_is_said(monkeypatch):
    rows = RowFile()
    rows.append({"a": 1})

    class Full:
        def write(self, _):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(rows, "_file", Full())
    with pytest.raises(DataError, match=r"takes no more \(No space left on device\).*TMPDIR=FOLDER"):
        rows.flush()


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path):
    old, new = tmp_path / ".writing-old", tmp_path / ".writing-new"
    for folder, age in ((old, 90_000), (new, 80_000)):
        folder.mkdir()
        then = folder.stat().st_mtime - age
        os.utime(folder, (then, then))
    prepared(SETS["prompt-completion"], cache=tmp_path)
    assert not old.exists()
    assert new.exists()

"""Mixtures: how many rows of each set one epoch has, read at once and streamed, and what a set does that ends."""

from collections import Counter
from itertools import islice

import pytest
from posttrain.data import read_rows
from posttrain.data.mixture import rows_of_each
from posttrain.errors import SettingsError
from posttrain.settings import Settings

LM = ("language-modeling",)


@pytest.mark.parametrize(
    ("sizes", "weights", "exhausted", "counts"),
    [
        ([10, 4], [1, 1], "leave", [10, 4]),
        ([10, 4], [0.5, 2.5], "leave", [5, 10]),
        # Half and half: ten of each, the smaller set two and a half times; or four of each.
        ([10, 4], [1, 1], "repeat", [10, 10]),
        ([10, 4], [1, 1], "stop", [4, 4]),
        # 3 to 1 from sets of 10 and 4: the first ends after 10, the second would last for 12.
        ([10, 4], [3, 1], "repeat", [12, 4]),
        ([10, 4], [3, 1], "stop", [10, 3]),
        ([10, 4], [0.6, 0.2], "repeat", [12, 4]),
    ],
)
def test_rows_of_each_set(sizes, weights, exhausted, counts):
    assert rows_of_each(sizes, weights, exhausted) == counts


def read(write, exhausted, streaming, weights=(3, 1)):
    names = [
        write(f"{name}.jsonl", *({"text": f"{name}{n}"} for n in range(size))) for name, size in (("a", 10), ("b", 4))
    ]
    named = [f"{name}={weight}" for name, weight in zip(names, weights, strict=True)]
    return read_rows(named, LM, Settings(exhausted=exhausted, streaming=streaming).data)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("exhausted", "a", "b"), [("leave", 30, 4), ("repeat", 12, 4), ("stop", 10, 3)])
def test_an_epoch_has_the_same_rows_at_once_and_streamed(write, streaming, exhausted, a, b):
    """Every row of a set as often as the others of it, give or take one."""
    texts = Counter(row["text"] for row in read(write, exhausted, streaming))
    counts = {name: [texts[f"{name}{n}"] for n in range(size)] for name, size in (("a", 10), ("b", 4))}
    found = [sum(counts["a"]), sum(counts["b"])]
    if streaming and exhausted != "leave":  # turns end where a set is found to be empty, at most a turn later
        assert abs(found[0] - a) <= 3
        assert abs(found[1] - b) <= 1
    else:
        assert found == [a, b]
    assert all(max(some) - min(some) <= 1 for some in counts.values())


@pytest.mark.parametrize(("exhausted", "count"), [("repeat", 10), ("stop", 4)])
def test_streamed_halves_of_unlike_sets(write, exhausted, count):
    """One row of each in turn: until the larger set has been read, or the smaller one."""
    texts = [row["text"] for row in read(write, exhausted, True, (1, 1))]
    for name in "ab":
        assert abs(sum(text[0] == name for text in texts) - count) <= 1
    assert set(texts) >= {f"b{n}" for n in range(4)}


def test_streamed_sets_keep_their_shares_all_along(write):
    """Of any first n rows three quarters come from the first set, give or take one row."""
    texts = [row["text"] for row in read(write, "repeat", True)]
    for count in range(1, len(texts) + 1):
        assert abs(sum(text[0] == "a" for text in islice(texts, count)) - 0.75 * count) <= 1


def test_a_fraction_is_the_same_share_streamed(write):
    for streaming in (False, True):
        found = Counter(row["text"][0] for row in read(write, "leave", streaming, (0.3, 1.5)))
        assert found == {"a": 3, "b": 6}


def test_shares_of_a_folder_are_refused(write, tmp_path):
    write("a.jsonl", {"text": "a"})
    write("b.jsonl", {"text": "b"})
    with pytest.raises(SettingsError, match=r"is a folder of 2 files, and with exhausted 'stop' a weight is the share"):
        read_rows([f"{tmp_path}=2"], LM, Settings(exhausted="stop").data)
    assert len(read_rows([f"{tmp_path}=2"], LM, Settings().data)) == 4

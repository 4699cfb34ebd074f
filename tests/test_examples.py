"""The examples run, and what they reach is known beforehand."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def by_hand():
    spec = importlib.util.spec_from_file_location("by_hand", ROOT / "examples" / "by_hand.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "by_hand", module)
        spec.loader.exec_module(module)
        yield module


def test_pairs_by_hand(by_hand):
    """At the first step policy and reference are one model, so the loss is ln 2; on the same pairs it then falls."""
    lines = by_hand.train_on_pairs()
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    losses = [line["loss"] for line in lines]
    assert losses == sorted(losses, reverse=True)
    assert lines[-1]["margin"] > lines[0]["margin"] == pytest.approx(0, abs=1e-5)


def test_samples_by_hand(by_hand):
    """Advantages of a group sum to 0 and the ratio is 1 in the only update, so the first loss is 0."""
    lines = by_hand.train_on_samples()
    assert lines[0]["loss"] == pytest.approx(0, abs=1e-5)
    assert [line["ratio"] for line in lines] == pytest.approx([1, 1], abs=1e-5)
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert lines[1]["kl"] > 0  # the policy has moved
    assert all(0 < line["reward"] < 1 for line in lines)


def test_a_cut_into_passes_does_not_change_the_step(by_hand, monkeypatch):
    whole = by_hand.train_on_pairs(steps=2)
    plain = by_hand.micro_batches
    monkeypatch.setattr(by_hand, "micro_batches", lambda examples, **given: plain(examples, **{**given, "size": 3}))
    assert by_hand.train_on_pairs(steps=2)[1]["loss"] == pytest.approx(whole[1]["loss"], rel=1e-4)


def test_pictures_of_the_shapes_show_what_their_rows_say():
    spec = importlib.util.spec_from_file_location("shapes", ROOT / "examples" / "shapes.py")
    shapes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shapes)
    for row in shapes.rows(12, seed=0):
        pixels = list(row["prompt"][0]["content"][0]["image"].getdata())
        filled = [colour for colour in pixels if colour != (255, 255, 255)]
        (colour,) = {name for name, value in shapes.COLOURS.items() if value == filled[0]}
        assert row["shows"] == f"{len(filled) // 16}{colour}"
        assert len(set(filled)) == 1
    assert shapes.reward(["2r", "2g", "1b", ""], ["2r", "2r", "2r", "2r"]) == [1.0, 0.5, 0.0, 0.0]

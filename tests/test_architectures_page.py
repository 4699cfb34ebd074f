"""The matrix of architectures: what the page says was measured, nothing in it is wrong, and some families again."""

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
FORMS = json.loads((RESULTS / "architectures.json").read_text(encoding="utf-8"))["families"]
TRIPS = json.loads((RESULTS / "architecture_trips.json").read_text(encoding="utf-8"))["families"]
TOLERANCE = 1e-4


def test_no_form_is_wrong():
    assert {form["kind"] for form in FORMS} <= {"packed", "padded", "refused", "unbuilt"}
    for form in FORMS:
        if form["kind"] in ("packed", "padded"):
            assert max(form["logps"], form["gradients"], form["sampled"] or 0) <= TOLERANCE, form["name"]
        else:
            assert form["line"], form["name"]


def test_each_family_has_a_row():
    for name in {form["name"].split()[0] for form in FORMS}:
        assert f"\n| `{name}` | " in PAGE


def test_models_come_back_from_disk_as_they_were_and_answer_as_generate():
    whole = [one for one in TRIPS if one["saved"] is not None and one["adapter"] is not None]
    assert len(whole) >= 40
    for one in TRIPS:
        assert max(one["saved"] or 0, one["adapter"] or 0) <= TOLERANCE, one["name"]
        if one["greedy"] != "equal":
            assert one["greedy"].startswith("as the model's own forward passes; generate ") or one["line"], one["name"]
        assert one["saved"] is not None or one["line"], one["name"]


def test_attention_is_reached_by_default():
    """Of families with layers of their own kind at least half; what is below is in the table."""
    for one in TRIPS:
        if one["adapter"] is not None and "attention" in one["reach"]:
            assert one["reach"]["attention"] > 0, one["name"]


@pytest.mark.parametrize("family", ["gemma2", "mamba", "codegen"])
def test_a_family_again(family, tmp_path, monkeypatch):
    """A soft-cap, a state instead of attention, a configuration without a padding token."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    trips = importlib.import_module("architecture_trips")
    found = trips.examine(family, tmp_path)
    for name in ("architecture_trips", "architectures"):
        sys.modules.pop(name, None)
    assert (found.greedy, found.line) == ("equal", "")
    assert max(found.saved, found.adapter) <= TOLERANCE
    assert found.reach["attention"] > 0.5

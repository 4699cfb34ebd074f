"""The page of promotions: a criterion that is not met is named, there and on the method's page."""

import json
from pathlib import Path

from posttrain.authoring import promotions_page
from posttrain.authoring.promote import STRATEGY_TOLERANCE, criteria, plugin_folder
from posttrain.catalogue.cards import read_card

ROOT = Path(__file__).resolve().parent.parent
ROWS = promotions_page.read_promotions(ROOT / "benchmarks" / "results")


def row(**missed):
    said = {
        "strategies agree": "losses 1.0 to 1.0, relative spread 2.5e-08",
        "published or peer figure": "5.1e-07 against 0.0 (a peer)",
    }
    names = ("no waivers", "conformance kit", "trajectory", *said, "options unchanged for a release")
    found = [{"name": n, "met": n not in missed, "detail": missed.get(n, said.get(n, "none"))} for n in names]
    return {"method": "fake", "met": not missed, "criteria": found}


def test_a_page_by_hand():
    page = promotions_page.page([row()], "mark")
    assert "| [fake](methods/fake.md) | yes | yes | yes | 2.5e-08 | 5.1e-07 | not measured | yes | stable |" in page
    assert "missing" not in page
    assert promotions_page.line([row()], "fake") is None
    bad = row(**{"no waivers": "waived: check_it"})
    page = promotions_page.page([bad], "mark")
    assert "| [fake](methods/fake.md) | **no** | yes | yes | 2.5e-08 | 5.1e-07 | not measured | yes | experi" in page
    assert page.endswith("## What is missing\n\n- `fake`: no waivers (waived: check_it)\n")
    said = "Of the criteria for [stable](../promotions.md) it misses: no waivers (waived: check_it)."
    assert promotions_page.line([bad], "fake") == said
    assert promotions_page.line([bad], "other") is None


def test_a_figure_on_held_out_rows_has_a_column_and_a_line():
    said = "margin 2.31 in [2.2, 2.4], untrained 0.1; a seed's difference at most 1.0e-03 of the way, 0.05 passes"
    one = row()
    one["criteria"].append({"name": promotions_page.HELD_OUT, "met": True, "detail": said})
    page = promotions_page.page([one, row() | {"method": "other"}], "mark")
    assert "| 5.1e-07 | margin 2.31 in [2.2, 2.4] | yes | stable |" in page
    assert page.endswith(f"## On held-out rows\n\n- `fake`: {said}\n- `other`: not measured\n")
    one["criteria"][-1]["met"] = False
    assert "| 5.1e-07 | **no** | yes |" in promotions_page.page([one], "mark")


def test_candidates_that_meet_all_criteria_are_stable_and_no_others():
    for one in ROWS:
        (card,) = plugin_folder(one["method"], ROOT).glob("*/method.toml")
        assert (read_card(card).tier == "stable") == one["met"], one["method"]


def test_what_is_recorded_is_what_the_evidence_says():
    """All criteria but the conformance kit and the trajectory, which have tests of their own."""
    for one in ROWS:
        folder = plugin_folder(one["method"], ROOT)
        now = criteria(folder, lambda _: True, lambda _: None)
        stored = {each["name"]: each for each in one["criteria"]}
        for criterion in (each for each in now if each.name not in ("conformance kit", "trajectory")):
            assert criterion.met == stored[criterion.name]["met"], (one["method"], criterion)


def test_the_peer_figure_is_that_of_the_comparison():
    parity = json.loads((ROOT / "benchmarks" / "results" / "parity.json").read_text())
    assert (parity["bound"], STRATEGY_TOLERANCE) == (1e-4, 1e-4)
    for one in ROWS:
        cases = [case["largest"] for case in parity["cases"] if case["case"].partition(",")[0] == one["method"]]
        (figure,) = (each["detail"] for each in one["criteria"] if each["name"] == "published or peer figure")
        assert figure.startswith(f"{float(f'{max(cases):.2e}')} against 0.0 ")

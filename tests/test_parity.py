"""The comparison with TRL: its table is in step with the results, and every case that passed is below its bound."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks" / "parity"


def load(name: str):
    specification = importlib.util.spec_from_file_location(f"parity_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results():
    return json.loads((ROOT / "benchmarks" / "results" / "parity.json").read_text())


def test_page_is_made_from_the_results(results):
    page = (ROOT / "docs" / "parity.md").read_text()
    assert page == load("table").render(results), "Mend it with: python benchmarks/parity/table.py"


def test_page_has_the_figures_of_the_file(results):
    rows = [line.split(" | ") for line in (ROOT / "docs" / "parity.md").read_text().splitlines() if line[:3] == "| `"]
    assert len(rows) == len(results["cases"])
    for row, case in zip(rows, results["cases"], strict=True):
        assert f"{row[0][3:-1]}, {row[1]}".rstrip(", ") == case["case"]
        worst = max(step["difference"] for step in case["series"])
        assert float(row[3]) == pytest.approx(worst, rel=0.06)  # two digits


def test_results_pass(results):
    assert results["bound"] <= 1e-4
    for case in results["cases"]:
        assert case["same_ids"]
        assert len(case["series"]) == results["steps"] == 8
        for step in case["series"]:
            floor = sum(abs(row["theirs"]) for row in case["series"]) / 8  # an online loss passes through 0
            assert abs(step["ours"] - step["theirs"]) <= 1e-4 * max(abs(step["theirs"]), floor)
        assert case["largest_grad_norm"] <= 1e-4


def test_cases_have_names_of_their_own_and_each_method_is_explained_once(results):
    cases = load("cases")
    names = [case.name for case in cases.CASES]
    assert len(set(names)) == len(names)
    assert {case["case"] for case in results["cases"]} <= set(names)
    assert set(load("table").DIFFERS) <= set(cases.METHODS)

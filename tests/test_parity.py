"""The comparison with TRL: its table is in step with the results, and every case that passed is below its bound."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

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


@pytest.fixture(scope="module")
def held_out():
    """The script of held-out rows; it finds its neighbours beside itself, as when it is run."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("held_out")
    sys.path.remove(str(FOLDER))
    for name in ("held_out", "held_out_rows", "cases", "material", "run", "table"):
        if name not in before:
            sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("ours", "untrained", "passes"),
    [
        ([1.1, 2.1, 3.1], 10.0, True),
        ([1.0, 2.0, 3.5], 10.0, False),  # one seed is 0.5 off, of a way of 8
        ([4.5, 4.5, 4.5], 10.0, False),  # outside of 2 +/- 2.484
        ([1.0, 2.0, 3.0], 4.0, False),  # a way of 2, less than half the interval
        ([1.0, 2.0, 3.0], 2.0, False),
    ],
)
def test_the_interval_of_the_peers_seeds_by_hand(held_out, ours, untrained, passes):
    """Seeds 1, 2, 3: mean 2, deviation 1, and 4.302653 / sqrt(3) = 2.484138 on either side."""
    found = held_out.judge(ours, [1.0, 2.0, 3.0], untrained)
    assert found["low"] == pytest.approx(2 - 2.484138, abs=1e-6)
    assert found["high"] == pytest.approx(2 + 2.484138, abs=1e-6)
    assert found["passes"] is passes


def test_seeds_count_that_both_sides_have_finished(held_out, tmp_path):
    """One pair of runs is not judged, two are: 1 and 2, deviation sqrt(1/2), and 12.706 / 2 = 6.353 on either side."""
    results = held_out.Results(tmp_path / "held_out.json", {"steps": 100})
    results.set_untrained("kto", {"margin": 30.0, "accuracy": 0.5})
    for side, seed in (("ours", 1), ("theirs", 1), ("theirs", 2), ("ours", 2)):
        assert results.summaries() == {}
        figures = {"margin": float(seed), "accuracy": 1.0}
        results.add({"method": "kto", "seed": seed, "side": side, "ids": str(seed), "figures": figures})
    found = held_out.Results(tmp_path / "held_out.json", {"steps": 100}).summaries()["kto"]
    assert (found["seeds"], found["passes"], found["ours"]) == (2, True, 1.5)
    assert found["high"] == pytest.approx(1.5 + 6.353102)
    results.runs[-1]["ids"] = "other tokens"
    assert not results.summaries()["kto"]["passes"]
    with pytest.raises(SystemExit, match=r"has runs with \{'steps': 100\}, not \{'steps': 3\}"):
        held_out.Results(tmp_path / "held_out.json", {"steps": 3})


def test_log_probs_of_answers_are_those_of_each_text_alone(held_out):
    model, tokenizer = tiny_model().double().eval(), tiny_tokenizer()
    texts = [("a b", " c"), ("a", " b c a b"), ("c a b c", " a")]
    with torch.no_grad():
        found = held_out.log_probs(model, tokenizer, texts)
        for (prompt, answer), logps in zip(texts, found, strict=True):
            before = tokenizer(prompt)["input_ids"]
            after = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
            each = model(torch.tensor([before + after])).logits[0].log_softmax(-1)  # (T, V)
            wanted = [float(each[len(before) - 1 + place, token]) for place, token in enumerate(after)]
            assert logps == pytest.approx(wanted, abs=1e-9)


def test_held_out_rows_are_not_trained_on_and_a_seed_says_all(held_out):
    rows = held_out.rows
    kept = {row["prompt"] for row in rows.pairs(None)}
    assert len(kept) == rows.HELD_OUT
    for seed in rows.SEEDS:
        taught = rows.pairs(seed)
        assert taught == rows.pairs(seed)
        assert len({row["prompt"] for row in taught} - kept) == len(taught) == 400
        assert not {prompt for prompt, _ in rows.groups(seed)} & {prompt for prompt, _ in rows.groups(None)}
    assert rows.pairs(1) != rows.pairs(2)
    for row in rows.pairs(1):
        a, b = map(int, row["prompt"][:-1].split("+"))
        assert int(row["chosen"]) == a + b != int(row["rejected"])
    for _, answers in rows.groups(1):
        assert len({held_out.material.reward(text) for text in answers}) == len(answers) == 4


def test_held_out_figures_follow_from_their_runs(held_out):
    if not held_out.RESULTS.is_file():
        pytest.skip("nothing was measured yet")
    stored = json.loads(held_out.RESULTS.read_text(encoding="utf-8"))
    results = held_out.Results(held_out.RESULTS, stored["facts"])
    assert (stored["facts"]["steps"], stored["close"]) == (100, 0.05)
    assert stored["methods"] == results.summaries()

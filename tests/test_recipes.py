"""Recipes run from data to the last stage on small models; what their pages say was measured."""

import json
import math
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "recipes"
sys.path.insert(0, str(RECIPES))  # no package that is installed

import page  # noqa: E402
import run as recipes  # noqa: E402  (found through the line above)

NAMES = ["distillation", "documents", "forgetting", "images", "reasoning", "rlhf", "tools"]
#: Metrics of which less is better.
FALLING = {"eval_loss"}


def test_every_folder_is_a_recipe():
    assert recipes.NAMES == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_end_to_end(name, tmp_path):
    """Two steps a stage, each stage with the configuration that is published."""
    pytest.importorskip("bitsandbytes" if name == "documents" else "PIL" if name == "images" else "posttrain")
    found = recipes.run(name, tmp_path / name, quick=True)
    assert list(found) == [path.stem for path in sorted((RECIPES / name).glob("[1-9]-*.yaml"))]
    assert all(math.isfinite(value) for stage in found.values() for pair in stage.values() for value in pair)


@pytest.mark.parametrize("name", NAMES)
def test_stored_figures_show_that_something_was_learnt_and_fit_a_gpu_of_24_gb(name):
    found = json.loads((RECIPES / name / "expected.json").read_text())
    for stage in found["figures"].values():
        for metric, (first, last) in stage.items():
            if metric == "eval_retain_nll":  # what is kept stays
                assert last < first + 0.5
            else:
                assert last < first if metric in FALLING else last > first, metric
    for stage, parts in found["memory_gb"].items():
        assert parts["total"] <= 24, stage
        assert (RECIPES / name / f"{stage}.yaml").is_file()


def test_the_page_has_the_stored_figures():
    text = (RECIPES / "README.md").read_text()
    assert page.page(text) == text, "run: python recipes/page.py"


def test_a_figure_that_is_off_is_told(monkeypatch, capsys):
    found = json.loads((RECIPES / "reasoning" / "expected.json").read_text())["figures"]
    monkeypatch.setattr(recipes, "run", lambda *_: {"1-grpo": {"eval_reward": [0.4, 0.2]}})
    assert recipes.main(["reasoning"]) == 1
    assert f"1-grpo eval_reward: [0.4, 0.2] instead of {found['1-grpo']['eval_reward']}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        recipes.main(["cooking"])


@pytest.mark.parametrize(
    "path", sorted(RECIPES.glob("*/[1-9]-*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_configurations_name_what_the_folder_makes(path):
    options = yaml.safe_load(path.read_text())
    assert options["output"] == f"runs/{path.stem}"
    assert options["method"] == path.stem.split("-", 1)[1]
    made = (path.parent / "data.py").read_text()
    for file in (options["data"], options["eval_data"]):
        assert Path(file).parent == Path("data")
        name = Path(file).name
        assert f'"{name}"' in made or f'f"{name.split("-test")[0].removesuffix(".jsonl")}{{name}}.jsonl"' in made
    assert f"posttrain train --config {path.name}" in (path.parent / "README.md").read_text()

"""Rules of this repository: the folder is the tier, budgets of size, facts that stand in two places agree."""

import ast
import re
import tomllib
from pathlib import Path

import posttrain
import pytest
from posttrain.authoring import sync
from posttrain.catalogue.cards import read_card

ROOT = Path(__file__).resolve().parent.parent
TIERS = {"plugins": {"stable", "retired"}, "contrib": {"experimental", "retired"}}
PROJECTS = sorted(path for tier in TIERS for path in (ROOT / tier).iterdir() if path.is_dir())
ROOMS = ("core", "testkit", "tests", "benchmarks", "examples", "recipes", ".ci")
FILES = sorted(
    path
    for room in ROOMS
    for path in (ROOT / room).rglob("*.py")
    if not any(part.startswith(".") for part in path.relative_to(ROOT / room).parts)  # a peer's environment
)
CARD_LINES, MODULE_LINES, FILE_LINES, FUNCTION_LINES = 20, 150, 400, 60


def functions(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.name)
def test_plugin_is_where_its_card_says_and_within_budget(project):
    (path,) = project.glob("*/method.toml")
    card = read_card(path)
    assert card.tier in TIERS[project.parent.name]
    assert (project.name, path.parent.name) == (card.name, card.module)
    facts = re.split(r"(?m)^\[(?:waivers|goldens)", path.read_text())[0]  # reasons and others' names come on top
    assert len(facts.rstrip().splitlines()) <= CARD_LINES
    for module in path.parent.rglob("*.py"):
        assert len(module.read_text().splitlines()) <= MODULE_LINES, module
    assert (project / f"test_{card.name.replace('-', '_')}.py").is_file()
    assert "tool" not in tomllib.loads((project / "pyproject.toml").read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_is_within_budget(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES
    long = [node.name for node in functions(path) if node.end_lineno - node.lineno + 1 > FUNCTION_LINES]
    assert not long


def test_version_and_python_floor_are_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == posttrain.__version__
    assert project["requires-python"] == sync.PYTHON_FLOOR
    assert project["license"] == sync.LICENCE
    kit = tomllib.loads((ROOT / "testkit" / "pyproject.toml").read_text())["project"]
    assert [kit[key] for key in ("version", "requires-python", "license")] == [
        project[key] for key in ("version", "requires-python", "license")
    ]
    assert f"posttrain=={posttrain.__version__}" in kit["dependencies"]
    assert project["optional-dependencies"]["check"] == [f"posttrain-testkit=={posttrain.__version__}"]


def test_public_names_resolve():
    for name in posttrain.__all__:
        assert getattr(posttrain, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        posttrain.trian  # noqa: B018  the access itself is what fails


def test_no_name_is_in_two_tiers():
    names = [project.name for project in PROJECTS]
    assert len(names) == len(set(names))

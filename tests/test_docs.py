"""The guides: hooks are documented with their exact signatures, the tutorial's code runs as printed."""

import inspect
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from posttrain.catalogue.entries import GROUPS
from posttrain.cli.main import COMMANDS, main
from posttrain.contract import hookspecs

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
HOOKS = {name: spec for name, spec in vars(hookspecs).items() if name.startswith("posttrain_")}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PACKAGE = "posttrain_method_tutorial_simpo"


@pytest.mark.parametrize("name", HOOKS)
def test_hook_is_documented_with_its_signature(name):
    signature = f"`{name}({', '.join(inspect.signature(HOOKS[name]).parameters)})`"
    assert signature in (DOCS / "hooks.md").read_text()


def test_no_hook_is_documented_that_does_not_exist():
    assert set(re.findall(r"`(posttrain_\w+)\(", (DOCS / "hooks.md").read_text())) == set(HOOKS)


def test_tutorial_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((DOCS / "write-a-method.md").read_text())
    commands = [line.split()[1:] for kind, text in blocks if kind == "bash" for line in text.splitlines()]
    codes = [text for kind, text in blocks if kind == "python"]
    (card,) = [text for kind, text in blocks if kind == "toml"]
    new, sync, check = commands
    assert main(new) == 0
    folder = tmp_path / "tutorial-simpo"
    (folder / PACKAGE / "method.toml").write_text(card)
    (folder / PACKAGE / "__init__.py").write_text(codes[0])
    (folder / "test_tutorial_simpo.py").write_text(codes[1])
    assert main(sync) == 0
    assert main([*check, "--group", "static"]) == 0
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "core"), str(ROOT / "testkit")]),
        "OMP_NUM_THREADS": "1",
    }
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "posttrain_testkit.pytest_plugin"]
    result = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_commands_in_the_guides_exist():
    for path in DOCS.rglob("*.md"):
        for command in re.findall(r"(?m)^posttrain ([a-z-]+)", path.read_text()):
            assert command in COMMANDS, f"{path.name}: posttrain {command}"


def test_links_between_pages_lead_somewhere():
    for path in DOCS.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#]+\.md)\)", path.read_text()):
            assert (path.parent / target).is_file(), f"{path}: {target}"


def test_which_method_names_methods_that_exist():
    """Every method in a table or a sentence of the page; the page leaves no family without a word."""
    text = (DOCS / "which-method.md").read_text()
    methods = {
        row["name"]: row
        for row in json.loads((ROOT / "core/posttrain/catalogue/catalogue.json").read_text())["methods"]
    }
    words = set(re.findall(r"`([a-z][a-z0-9-]+)`", text))
    columns = {"accuracy", "margin", "completion"}
    assert words - columns <= set(methods), words - columns - set(methods)
    families = {methods[word]["family"] for word in words - columns}
    assert families == {row["family"] for row in methods.values()}


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_files_and_names_of_the_code_exist(page):
    text = page.read_text()
    for name in set(re.findall(r"(?<![\w./-])(?:core|tests|benchmarks|examples|testkit)/\w[\w./-]*\w", text)):
        assert (ROOT / name).exists(), name
    groups = {*GROUPS.values(), "posttrain.commands"}
    for name in set(re.findall(r"\bposttrain(?:\.\w+)+", text)) - groups:
        module, _, attribute = name.rpartition(".")
        file = ROOT / "core" / f"{module.replace('.', '/')}.py"  # read, since some modules need vLLM
        found = file.is_file() and re.search(rf"(?m)^(class|def) {attribute}\b", file.read_text())
        assert found or pkgutil.resolve_name(name) is not None, name


def test_the_page_of_environments_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((DOCS / "environments.md").read_text())
    (code,) = [text for kind, text in blocks if kind == "python"]
    (tmp_path / "digit.py").write_text(code)
    for line in next(text for kind, text in blocks if kind == "bash").splitlines():
        assert main(line.split()[1:]) == 0, line
    assert json.loads((tmp_path / "runs/digit/episodes-kto.jsonl").read_text().splitlines()[0])["prompt"]


def test_the_page_of_images_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((DOCS / "images.md").read_text())
    made, environment = [text for kind, text in blocks if kind == "python"]
    exec(compile(made, "make.py", "exec"), {})
    (tmp_path / "squares.py").write_text(environment)
    for line in "".join(text for kind, text in blocks if kind == "bash").splitlines():
        assert main(shlex.split(line)[1:]) == 0, line


def test_the_page_of_evaluations_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((DOCS / "evaluate.md").read_text())
    assert main(next(text for kind, text in blocks if kind == "bash").split()[1:]) == 0
    assert "95 % interval" in capsys.readouterr().out
    (code,) = [text for kind, text in blocks if kind == "python"]
    exec(compile(code, "evaluate.md", "exec"), {})
    assert "mean=" in capsys.readouterr().out

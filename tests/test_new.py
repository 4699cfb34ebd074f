"""New plugins work as they stand: they load, pass their own tests and checks, build, and lint clean."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from posttrain.authoring.losses import LOSSES
from posttrain.authoring.new import new
from posttrain.catalogue import discovery, methods
from posttrain.catalogue.cards import SCHEMAS
from posttrain.cli.main import main
from posttrain.errors import MethodError, SettingsError

ROOT = Path(__file__).resolve().parent.parent


def run(folder, *words):
    environment = {
        "PYTHONPATH": f"{ROOT / 'core'}:{ROOT / 'testkit'}:{folder}",
        "OMP_NUM_THREADS": "1",
        "PATH": "/usr/bin:/bin",
    }
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("schema", LOSSES)
def test_new_method_loads_and_is_synced(tmp_path, schema):
    folder = new("fake-loss", schema=schema, parent=tmp_path)
    method = methods.load(str(folder))
    assert method.card.schemas == (schema,)
    assert method.has("posttrain_loss")
    assert main(["sync", "--check", str(folder)]) == 0
    assert main(["check", str(folder), "--group", "static"]) == 0


def test_templates_cover_the_schemas():
    assert set(SCHEMAS) - set(LOSSES) == {"ranked", "stepwise"}


@pytest.mark.parametrize("schema", ["preference", "prompt"])
def test_new_method_passes_its_own_tests(tmp_path, schema):
    folder = new("fake-loss", schema=schema, parent=tmp_path)
    result = run(folder, "pytest", "-q", "-p", "no:cacheprovider", "-p", "posttrain_testkit.pytest_plugin")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("kind", ["reward", "source", "observer"])
def test_other_kinds_pass_their_own_tests_and_name_their_group(tmp_path, kind):
    folder = new("fake-thing", kind=kind, parent=tmp_path)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert list(project["entry-points"]) == [f"posttrain.{kind}s"]
    result = run(folder, "pytest", "-q", "-p", "no:cacheprovider", "-p", "posttrain_testkit.pytest_plugin")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("kind", ["method", "reward"])
def test_wheel_holds_the_card_and_is_small(tmp_path, kind):
    folder = new("fake-loss", kind=kind, parent=tmp_path)
    result = run(folder, "build", "--wheel", "--no-isolation", ".")
    assert result.returncode == 0, result.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert f"posttrain_{kind}_fake_loss/__init__.py" in names
    assert ("posttrain_method_fake_loss/method.toml" in names) is (kind == "method")
    assert not [name for name in names if "test_" in name]
    assert wheel.stat().st_size < 20_000


def test_new_code_lints_clean(tmp_path):
    for schema in LOSSES:
        new(f"fake-{schema}", schema=schema, parent=tmp_path)
    for kind in ("reward", "source", "observer"):
        new(f"fake-{kind}", kind=kind, parent=tmp_path)
    config = ["--config", str(ROOT / "pyproject.toml"), "--no-cache", "."]
    for words in (["check"], ["format", "--check"]):
        result = run(tmp_path, "ruff", *words, *config)
        assert result.returncode == 0, result.stdout


def test_what_new_refuses(tmp_path):
    with pytest.raises(
        SettingsError, match=r"^Name 'My' is not lower-case words joined by hyphens, such as my-loss\.$"
    ):
        new("My", parent=tmp_path)
    with pytest.raises(MethodError, match=r"^A method is called 'dpo' already\. Choose another name\.$"):
        new("dpo", parent=tmp_path)
    (tmp_path / "fake").mkdir()
    with pytest.raises(SettingsError, match=r"fake' exists already\. Choose another name, or remove it\.$"):
        new("fake", parent=tmp_path)
    with pytest.raises(SettingsError, match=r"^There is no template for schema 'ranked'\."):
        new("fake-two", schema="ranked", parent=tmp_path)


def test_folder_is_found_as_a_plugin(tmp_path):
    folder = new("fake-loss", parent=tmp_path)
    row = discovery.find_folder(folder)
    assert (row.name, row.card.tier) == ("fake-loss", "experimental")

"""What a release consists of: wheels with equal bytes, alone in an environment, and versions that fit."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import posttrain
import pytest
from packaging.version import Version
from posttrain.catalogue.cards import read_card
from posttrain.catalogue.versions import incompatible

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / ".ci")]  # neither is a package that is installed

import dist  # noqa: E402  (found through the line above)
import lowest  # noqa: E402

CARDS = [
    read_card(path)
    for path in sorted(ROOT.glob("plugins/*/*/method.toml")) + sorted(ROOT.glob("contrib/*/*/method.toml"))
]
CORE = Version(posttrain.__version__)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The wheels of the core, the kit and two methods, as ``make dist`` builds them."""
    folder = tmp_path_factory.mktemp("wheels")
    assert dist.main(["--target", str(folder / "dist"), "--only", "dpo", "kto"]) == 0
    return folder / "dist"


def test_checksums_provenance_and_the_bundle_agree_with_the_wheels(wheels):
    names = sorted(file.name for file in wheels.glob("*.whl"))
    assert [name.split("-")[0] for name in names] == [
        "posttrain", "posttrain_method_dpo", "posttrain_method_kto", "posttrain_methods_all", "posttrain_testkit",
    ]  # fmt: skip
    check = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=wheels, capture_output=True, check=False
    )
    assert check.returncode == 0
    statement = json.loads((wheels / "provenance.json").read_text())
    assert sorted(subject["name"] for subject in statement["subject"]) == names


def test_a_build_that_depends_on_its_place_is_refused(tmp_path, monkeypatch, capsys):
    build = dist.build
    monkeypatch.setattr(dist, "build", lambda root, *words: build(root, *words) | {"posttrain": str(root)})
    assert dist.main(["--target", str(tmp_path / "dist"), "--only", "dpo"]) == 1
    assert capsys.readouterr().err == "Not reproducible: posttrain\n"


def test_a_folder_with_other_files_is_not_emptied(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(SystemExit):
        dist.main(["--target", str(tmp_path)])
    assert (tmp_path / "thesis.tex").exists()


def test_a_wheel_alone_is_listed_shown_and_trained(wheels, tmp_path):
    command = [sys.executable, "-m", "benchmarks.installs", "--wheels", wheels, "--output", tmp_path / "found.json"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())[posttrain.__version__]
    assert {name: one["problem"] for name, one in found["methods"].items()} == {"dpo": None, "kto": None}
    assert found["bundle"] is None


def test_wheels_that_were_installed_alone_had_no_problem():
    results = json.loads((ROOT / "benchmarks" / "results" / "installs.json").read_text())
    for found in results.values():
        assert [name for name, one in found["methods"].items() if one["problem"]] == []
        assert found["bundle"] is None
        assert len(found["methods"]) >= 260
    page = (ROOT / "docs" / "releasing.md").read_text()
    assert f"trained for three steps in {results['0.2.0']['seconds']} seconds, none with a problem" in page


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_versions_of_the_core_that_a_method_allows(card):
    (requirement,) = card.requires
    low, high = requirement.removeprefix("posttrain").split(",")
    low, high = low.removeprefix(">="), high.removeprefix("<")
    assert incompatible(card, low) is None
    assert incompatible(card, posttrain.__version__) is None
    assert incompatible(card, f"{int(high) - 1}.999.0") is None
    assert f"needs posttrain >={low},<{high} but {high}.0.0 is installed" in str(incompatible(card, f"{high}.0.0"))
    assert str(incompatible(card, "0.1.0")).endswith("Upgrade with: pip install -U posttrain")
    assert Version(low) <= CORE < Version(high)


def test_no_experimental_method_is_ahead_of_the_core():
    assert max(Version(card.version) for card in CARDS if card.tier == "experimental") <= CORE


def test_the_citation_names_this_version():
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    assert f'version: "{posttrain.__version__}"' in lines


def test_lower_bounds_are_those_of_the_project():
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [line.replace("==", ">=") for line in lowest.floors([])] == sorted(lines)

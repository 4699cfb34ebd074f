"""The kit's pytest plugin in a project of somebody else: what it collects, offers, and says when something is wrong."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from posttrain.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
TESTS = '''
import pytest
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import pair

PAIR = {"policy_chosen_tok": [[-1.0, -2.0]], "policy_rejected_tok": [[-3.0]], "ref_chosen_tok": [[-1.5, -2.0]],
        "ref_rejected_tok": [[-2.0]]}


def test_margin(loss_of, call_loss, gradcheck, method):
    """-3 + 3 + 3.5 - 2 = 1.5; beta 0.1."""
    assert loss_of(PAIR).metrics["margin"].tolist() == [1.5]
    loss, _ = call_loss(pair([[-1, -2]], [-3]), pair([[-1.5, -2]], [-2]), beta=2.0)
    assert loss.tolist() == pytest.approx([0.048587], abs=1e-6)
    assert method.name == "planted"
    gradcheck(PAIR, kind="square")
'''
#: ln(1 + e^-0.15), margin 1.5 and beta 0.1; and two entries that are wrong.
GOLDENS = {
    "planted": {"inputs": {}, "loss": 0.620957, "aside": 3.0, "not_compared": ["aside"]},
    "wrong": {"inputs": {}, "loss": 0.5},
    "forgotten": {"inputs": {}, "loss": 0.620957, "aside": 3.0},
    "done": {"inputs": {}, "loss": 0.620957, "implemented": False},
    "others": {"inputs": {}, "loss": 1.0, "implemented": False},
}
INPUTS = {
    "policy_chosen_tok": [[-1.0, -2.0]],
    "policy_rejected_tok": [[-3.0]],
    "ref_chosen_tok": [[-1.5, -2.0]],
    "ref_rejected_tok": [[-2.0]],
}


def run(folder, *words):
    places = os.pathsep.join([str(ROOT / "core"), str(ROOT / "testkit")])
    environment = os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "posttrain_testkit.pytest_plugin", "-rA"]
    return subprocess.run([*command, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def outcomes(text):
    return {name: word for word, name in re.findall(r"(?m)^(PASSED|FAILED|XFAIL|ERROR) \S+::(\S+)", text)}


def test_goldens_checks_and_fixtures(plants, tmp_path):
    folder = plants.write_method(tmp_path / "planted", "preference", plants.STATIC["check_options_are_documented"])
    name = "check_docstring_has_its_sections"
    module = folder / "posttrain_method_planted" / "__init__.py"
    module.write_text(module.read_text().replace("Metrics:", "Numbers:"))
    card = folder / "posttrain_method_planted" / "method.toml"
    claims = "\n".join(f"{entry} = {{}}" for entry in ("wrong", "forgotten", "done"))
    card.write_text(f'{card.read_text()}\n[waivers]\n{name} = "for this test"\n[goldens.entries]\n{claims}\n')
    (folder / "goldens.json").write_text(
        json.dumps({entry: facts | {"inputs": INPUTS} for entry, facts in GOLDENS.items()})
    )
    (folder / "test_planted.py").write_text(TESTS)
    (folder / "test_second.py").write_text("def test_second():\n    pass\n")
    result = run(folder, "-k", "margin or goldens or second or documented or sections or finite")
    found = outcomes(result.stdout)
    assert found["test_margin"] == found["test_second"] == found["test_goldens[planted]"] == "PASSED"
    assert found["test_conformance[gradient_equals_finite_differences]"] == "PASSED"
    assert found["test_conformance[docstring_has_its_sections]"] == "XFAIL"
    assert found["test_conformance[options_are_documented]"] == "FAILED"
    assert "planted: check_options_are_documented\n" in result.stdout
    assert {name for name in found if "goldens" in name} == {
        f"test_goldens[{entry}]" for entry in ("planted", "wrong", "forgotten", "done")
    }
    assert re.search(r"wrong +differs +loss: expected 0\.500000, found 0\.620957", result.stdout)
    assert "nothing is compared with aside. If so, list it under not_compared." in result.stdout
    assert "'done' is marked as not implemented, and a method answers it." in result.stdout
    assert sum(one == "FAILED" for one in found.values()) == 4, found


def test_a_golden_file_that_is_not_there_is_an_error(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\nposttrain_goldens = nowhere.json\n")
    result = run(tmp_path)
    assert result.returncode == 4
    assert f"posttrain_goldens names {tmp_path / 'nowhere.json'}, and there is no such file." in result.stderr


def test_fixtures_without_a_method_say_so(tmp_path):
    (tmp_path / "test_alone.py").write_text("def test_alone(loss_of):\n    pass\n")
    result = run(tmp_path)
    assert outcomes(result.stdout) == {"test_alone": "ERROR"}
    assert f"The fixture 'method' needs a package posttrain_method_NAME in {tmp_path}." in result.stdout


class NotInstalled:
    """A finder before all others, as if the kit were nowhere."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "posttrain_testkit":
            raise ModuleNotFoundError(f"No module named '{name}'", name="posttrain_testkit")


@pytest.mark.parametrize("command", [["check", "dpo"], ["promote", "dpo"]])
def test_without_the_kit_the_command_line_names_the_extra(monkeypatch, capsys, command):
    monkeypatch.chdir(ROOT)
    for name in [name for name in sys.modules if name.startswith("posttrain_testkit")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NotInstalled(), *sys.meta_path])
    assert main(command) == 2
    assert capsys.readouterr().err == (
        "The conformance kit is not installed. Install it with: pip install 'posttrain[check]'\n"
    )

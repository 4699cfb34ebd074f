"""The core declares the packages that it imports and no other; the conformance kit's own check reads its files."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from posttrain_testkit.checks.source import modules_of, undeclared_imports

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "core").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
#: Modules of posttrain itself, whose names are put together at run time, and the kit that ``posttrain check`` starts.
OWN = {"posttrain", "posttrain_testkit", "a name made at run time"}
#: Extras that are no library of the core: methods, the kit, and what accelerate or transformers alone imports.
NOT_IMPORTED = {"stable", "check", "tensorboard", "wandb", "smolvlm"}


def imported_beside(declared):
    return {top for _, top in undeclared_imports(FILES, OWN | declared)}


def test_every_import_of_the_core_is_declared():
    optional = {line for name, lines in EXTRAS.items() if name not in NOT_IMPORTED for line in lines}
    declared = {"torch", *modules_of({*PROJECT["dependencies"], *optional})}
    assert imported_beside(declared) == set()


@pytest.mark.parametrize("line", PROJECT["dependencies"], ids=lambda line: re.split("[<>=]", line)[0])
def test_every_dependency_is_imported(line):
    modules = {"torch"} if Requirement(line).name == "torch" else modules_of({line})
    assert modules & imported_beside(set())


@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - NOT_IMPORTED))
def test_every_extra_is_imported(extra):
    for line in EXTRAS[extra]:
        assert modules_of({line}) & imported_beside(set())


def test_a_planted_import_is_found(tmp_path):
    (tmp_path / "planted.py").write_text("import os\nimport torch\n\n\ndef f():\n    from accelerate.utils import x\n")
    assert list(undeclared_imports([tmp_path / "planted.py"], {"torch"})) == [("planted.py line 6", "accelerate")]

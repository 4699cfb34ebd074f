"""Every check catches the bug that is planted for it, and finds nothing wrong with the method without the bug."""

import importlib.util
import sys
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("conformance_plants", Path(__file__).with_name("plants.py"))
plants = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = plants
_SPEC.loader.exec_module(plants)

from posttrain.testing import checks_for, run_check, subject_of  # noqa: E402  # plants.py has no package to import from
from posttrain.testing.registry import GROUPS, all_checks, find_check  # noqa: E402

QUICK = plants.STATIC | plants.LOSS


@pytest.mark.parametrize("name", list(QUICK))
def test_check_catches_its_plant(name, tmp_path):
    plant = QUICK[name]
    result = run_check(find_check(name), subject_of(plants.write_method(tmp_path / "planted", plant.schema, plant)))
    assert result.outcome == "failed", f"{name} did not see the plant"
    assert plant.says in result.what, result.what
    assert result.cause.startswith("Usual cause: ")
    assert result.repeat.startswith("posttrain check ")


@pytest.mark.parametrize("schema", list(plants.GOOD))
def test_good_method_passes(schema, tmp_path):
    subject = subject_of(plants.write_method(tmp_path / "planted", schema))
    results = [run_check(one, subject) for one in checks_for(subject, ("static", "loss"))]
    assert [one.text() for one in results if one.outcome != "passed"] == []


def test_every_check_has_a_plant():
    planted = {"static": set(plants.STATIC), "loss": set(plants.LOSS), "training": set(plants.TRAINING)}
    for group in GROUPS:
        assert planted[group] == {one.name for one in all_checks((group,))}

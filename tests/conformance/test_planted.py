"""Every check catches the bug that is planted for it, and finds nothing wrong with the method without the bug."""

import pytest
from posttrain_testkit import checks_for, run_check, subject_of
from posttrain_testkit.registry import GROUPS, all_checks, find_check


@pytest.mark.filterwarnings("ignore:std")  # of the planted modules
def test_check_catches_its_plant(planted, plants, tmp_path):
    name, plant = planted
    result = run_check(find_check(name), subject_of(plants.write_method(tmp_path / "planted", plant.schema, plant)))
    assert result.outcome == "failed", f"{name} did not see the plant"
    assert plant.says in result.what, result.what
    assert result.cause.startswith("Usual cause: ")
    assert result.repeat == f"posttrain check {tmp_path / 'planted'} --only {name}"


@pytest.mark.filterwarnings("ignore:std")  # of the planted modules
def test_shipped_bug_is_caught(shipped, plants, tmp_path):
    """Trap ids S1 S6 S7 S8 M3 P1 P5 G6 G10; S3, D3, D4 and M9 are plants of their own checks."""
    name, plant = shipped
    result = run_check(find_check(name), subject_of(plants.write_method(tmp_path / "planted", plant.schema, plant)))
    assert (result.outcome, plant.says in result.what) == ("failed", True), result.text()


def test_good_method_passes(schema, plants, tmp_path):
    """No false alarm, so that a plant is all that its check can have seen."""
    subject = subject_of(plants.write_method(tmp_path / "planted", schema))
    results = [run_check(one, subject) for one in checks_for(subject)]
    assert [one.text() for one in results if one.outcome != "passed"] == []


def test_every_check_has_a_plant(plants):
    planted = {"static": set(plants.STATIC), "loss": set(plants.LOSS), "training": set(plants.TRAINING)}
    for group in GROUPS:
        assert planted[group] == {one.name for one in all_checks((group,))}


def test_every_check_applies_to_a_good_method(plants, tmp_path):
    """A check that applies to nothing would never run."""
    applied = set()
    for schema in plants.GOOD:
        subject = subject_of(plants.write_method(tmp_path / schema, schema))
        applied |= {one.name for one in checks_for(subject)}
    assert applied == {one.name for one in all_checks()}

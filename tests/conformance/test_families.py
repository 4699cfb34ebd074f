"""The kit on models with images and on mixtures of experts: a sample of what benchmarks/kit_families.py runs."""

import pytest
from posttrain.errors import SettingsError
from posttrain_testkit import run_check, subject_of
from posttrain_testkit.command import run
from posttrain_testkit.registry import Check, CheckFailed, always, find_check

SAMPLE = [
    ("dpo", "vision", "check_accumulation_does_not_matter"),
    ("reward", "vision", "check_layout_does_not_matter"),  # a head that transformers has no class for
    ("pqm", "vision", "check_resume_equals_uninterrupted"),
    ("npo", "vision", "check_accumulation_does_not_matter"),  # a row's samples have their own pictures
    ("online-dpo", "vision", "check_accumulation_does_not_matter"),  # a judge that is shown the pictures
    ("grpo", "experts", "check_accumulation_does_not_matter"),
]


@pytest.mark.parametrize(("method", "family", "check"), SAMPLE)
def test_a_method_holds_on_another_family(method, family, check):
    subject = subject_of(method)
    subject.family = family
    result = run_check(find_check(check), subject)
    assert result.outcome == "passed", result.text()


def test_a_bug_is_found_there_too_and_said_how_to_repeat(plants, tmp_path, capsys):
    folder = plants.write_method(
        tmp_path / "planted", "preference", plants.TRAINING["check_accumulation_does_not_matter"]
    )
    words = [str(folder), "--family", "vision", "--only", "accumulation-does-not-matter"]
    assert run(words) == 1
    said = capsys.readouterr().out
    assert f"Repeat with: posttrain check {folder} --only check_accumulation_does_not_matter --family vision" in said


def test_an_unknown_family_is_refused():
    with pytest.raises(SettingsError) as raised:
        run(["dpo", "--family", "audio"])
    assert str(raised.value) == "No family of models is called 'audio'. Families: text, vision, experts."


@pytest.mark.parametrize(
    ("method", "family", "name", "outcome"),
    [
        ("nash-md", "vision", "check_promise_holds_with_lora", "waived"),
        ("nash-md", "vision", "check_layout_does_not_matter", "failed"),
        ("nash-md", "text", "check_promise_holds_with_lora", "failed"),
        ("nash-md", "experts", "check_promise_holds_with_lora", "failed"),
        ("dpo", "vision", "check_promise_holds_with_lora", "failed"),
    ],
)
def test_a_promise_that_a_family_cannot_show_is_excused_there_alone(method, family, name, outcome):
    def falls(_):
        raise CheckFailed("The reward fell.", "A sign.")

    subject = subject_of(method)
    subject.family = family
    result = run_check(Check(name, "training", falls, always), subject)
    assert (result.outcome, result.what) == (outcome, "The reward fell.")
    assert ("seldom writes the letter" in result.text()) == (outcome == "waived")

"""``posttrain check``: outcomes, texts, waivers, JSON, and what it does not import."""

import json
import resource
import shutil
import subprocess
import sys

import pytest
from posttrain.catalogue.discovery import installed
from posttrain.errors import MethodError, SettingsError
from posttrain_testkit import checks_for, run_check, subject_of
from posttrain_testkit.command import run
from posttrain_testkit.registry import find_check


def waive(plants, folder, check, plant=None):
    """A good (or planted) pairwise method whose card waives a check."""
    method = plants.write_method(folder, "preference", plant)
    card = method / "posttrain_method_planted" / "method.toml"
    card.write_text(card.read_text() + f'\n[waivers]\n{check} = "the paper stops the gradient"\n')
    return method


def test_failure_says_what_why_and_how_to_repeat(plants, tmp_path, capsys):
    plant = plants.LOSS["check_loss_is_unreduced"]
    folder = plants.write_method(tmp_path / "planted", "preference", plant)
    assert run([str(folder), "--only", "loss-is-unreduced"]) == 1
    assert capsys.readouterr().out.splitlines()[:-1] == [
        "planted: check_loss_is_unreduced",
        "  With the default options, the term 'loss' is a tensor of shape () for 4 examples.",
        "  Usual cause: .mean() or .sum() at the end. Return (4,), one value an example.",
        f"  Repeat with: posttrain check {folder} --only check_loss_is_unreduced",
    ]


def test_json_has_counts_and_results(plants, tmp_path, capsys):
    folder = plants.write_method(tmp_path / "planted", "preference")
    assert run([str(folder), "--group", "static", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is True
    assert report["counts"] == {"passed": 11, "waived": 0, "failed": 0, "stale-waiver": 0}
    assert report["results"][0]["check"] == "check_card_is_valid"


def test_waived_check_may_fail(plants, tmp_path):
    name = "check_gradient_equals_finite_differences"
    subject = subject_of(waive(plants, tmp_path / "planted", name, plants.LOSS[name]))
    result = run_check(find_check(name), subject)
    assert (result.outcome, result.failed, result.cause) == ("waived", False, "the paper stops the gradient")


def test_waived_check_that_passes_is_a_failure(plants, tmp_path):
    name = "check_gradient_equals_finite_differences"
    result = run_check(find_check(name), subject_of(waive(plants, tmp_path / "planted", name)))
    assert (result.outcome, result.failed) == ("stale-waiver", True)
    assert result.what == "The card waives this check (the paper stops the gradient) but it passes."


def test_unknown_check_is_named_with_a_close_match():
    with pytest.raises(
        SettingsError, match=r"^No check is called 'loss-is-finit'\. Did you mean 'check_loss_is_finite'\?"
    ):
        find_check("loss-is-finit")


def test_check_that_does_not_apply_is_not_a_silent_pass(plants, tmp_path):
    folder = plants.write_method(tmp_path / "planted", "preference")
    with pytest.raises(SettingsError, match=r"^'check_equal_rewards_teach_nothing' does not apply to 'planted'"):
        run([str(folder), "--only", "equal-rewards-teach-nothing"])


def test_folder_without_a_method(tmp_path):
    with pytest.raises(MethodError, match="holds no method"):
        run([str(tmp_path)])
    with pytest.raises(
        MethodError, match=r"^There is no folder '\./nowhere'\. Make a plugin with: posttrain new NAME$"
    ):
        run(["./nowhere"])


def test_method_that_cannot_be_imported_fails_in_words(plants, tmp_path):
    plant = plants.Plant("preference", "import torch\n", "import torch\nraise SystemExit(3)\n", "")
    subject = subject_of(plants.write_method(tmp_path / "planted", "preference", plant))
    result = run_check(find_check("check_loss_is_finite"), subject)
    assert result.outcome == "failed"
    assert result.what == "Plugin 'planted' cannot be imported: SystemExit: 3"


def test_broken_card_leaves_the_static_checks(plants, tmp_path):
    plant = plants.Plant("preference", 'name = "planted"', "name =", "", "method.toml")
    subject = subject_of(plants.write_method(tmp_path / "planted", "preference", plant))
    assert {one.group for one in checks_for(subject)} == {"static"}
    assert "is not valid TOML" in run_check(find_check("check_card_is_valid"), subject).what


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on sys.path, as site-packages is, seen by discovery for this test alone."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    installed.cache_clear()
    yield tmp_path / "site"
    installed.cache_clear()


def install(site, folder):
    """Lay the package and the metadata of a plugin folder where an installer would."""
    shutil.copytree(folder / "posttrain_method_planted", site / "posttrain_method_planted")
    facts = site / "posttrain_method_planted-0.1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: posttrain-method-planted\nVersion: 0.1.0\n")
    (facts / "entry_points.txt").write_text("[posttrain.methods]\nplanted = posttrain_method_planted\n")


def test_installed_method_is_checked_by_name(plants, tmp_path, site, capsys):
    install(site, plants.write_method(tmp_path / "planted", "preference"))
    assert run(["planted", "--group", "static"]) == 0
    assert capsys.readouterr().out.startswith("planted: 11 passed in ")


def test_wheel_without_the_card_is_seen(plants, tmp_path, site):
    install(site, plants.write_method(tmp_path / "planted", "preference"))
    record = site / "posttrain_method_planted-0.1.0.dist-info" / "RECORD"
    record.write_text("posttrain_method_planted/__init__.py,,\n")
    result = run_check(find_check("check_card_is_in_the_wheel"), subject_of("planted"))
    assert result.what == (
        "The installed distribution lists 1 files and posttrain_method_planted/method.toml is not among them."
    )


def test_broken_installed_method_is_a_failure_beside_the_good_ones(plants, tmp_path, site, capsys):
    install(site, plants.write_method(tmp_path / "planted", "preference"))
    (site / "posttrain_method_planted" / "method.toml").unlink()
    assert run(["--group", "static", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [row["what"] for row in rows if row["method"] == "planted"] == [
        "module 'posttrain_method_planted' has no method.toml beside its code. Put it into the wheel (package data)."
    ]


def test_static_checks_import_no_torch_and_take_hundred_methods(plants, tmp_path):
    folders = [str(plants.write_method(tmp_path / f"planted{i}", "preference")) for i in range(100)]
    code = (
        "import sys\nfrom posttrain_testkit.command import run\n"
        f"code = run([*{folders!r}, '--group', 'static'])\n"
        "print(sorted({'torch', 'transformers', 'posttrain_method_planted'} & set(sys.modules)))\nsys.exit(code)"
    )
    begun = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - begun < 6  # seconds of its own; 3 s when measured

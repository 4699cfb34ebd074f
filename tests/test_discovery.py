"""Discovery: every state a plugin can be in is one row or one sentence, and nothing is imported."""

import sys

import pytest
from posttrain import catalogue, discovery
from posttrain.errors import MethodError

HOSTILE = "raise SystemExit('imported')"


def rows(name):
    return [row for row in discovery.installed() if row.name == name]


def test_installed_method_is_found_without_being_imported(site):
    site.add("fake", code=HOSTILE)
    row = discovery.find("fake")
    assert (row.distribution, row.version, row.module) == ("posttrain-method-fake", "1.2.0", "posttrain_method_fake")
    assert row.card.summary == "Summary of fake."
    assert row.problem is None
    assert "posttrain_method_fake" not in sys.modules


def test_missing_method_names_the_package(site, monkeypatch):
    fact = catalogue.Known("fake-loss", "stable", "", ("preference",), (), "", "", "posttrain-method-fake-loss")
    monkeypatch.setattr(discovery, "known", lambda: {"fake-loss": fact})
    with pytest.raises(MethodError) as error:
        discovery.find("fake-loss")
    assert str(error.value) == (
        "Method 'fake-loss' is not installed. Install it with: pip install posttrain-method-fake-loss"
    )


def test_misspelt_method_names_the_closest(site):
    site.add("fake-kto")
    with pytest.raises(MethodError) as error:
        discovery.find("fake-kot")
    assert str(error.value) == (
        "No method is called 'fake-kot'. Did you mean 'fake-kto'?  All methods: posttrain list-methods --available"
    )


def test_name_without_anything_close(site):
    with pytest.raises(MethodError) as error:
        discovery.find("qqqqq")
    assert str(error.value) == "No method is called 'qqqqq'.  All methods: posttrain list-methods --available"


def test_name_that_is_a_folder_says_how_to_mean_it(site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fake-here").mkdir()
    with pytest.raises(MethodError, match=r"There is a folder of that name; for a method in it write \./fake-here$"):
        discovery.find("fake-here")


def test_method_in_two_packages_is_an_error_never_the_first(site):
    site.add("fake", version="0.4.0")
    site.add("fake", distribution="posttrain-method-fake2", version="0.1.0")
    with pytest.raises(MethodError) as error:
        discovery.find("fake")
    assert str(error.value) == (
        "Method 'fake' is provided by two packages: posttrain-method-fake 0.4.0 and posttrain-method-fake2 0.1.0. "
        "Uninstall one."
    )
    assert [row.problem is not None for row in rows("fake")] == [True, True]


def test_three_packages(site):
    for tail in ("a", "b", "c"):
        site.add("fake", distribution=f"fake-{tail}", version="1")
    with pytest.raises(MethodError, match=r"3 packages: fake-a 1, fake-b 1 and fake-c 1\. Keep one of them\.$"):
        discovery.find("fake")


@pytest.mark.parametrize(
    ("requires", "sentence"),
    [
        (
            "posttrain>=99,<100",
            "needs posttrain >=99,<100 but 0.1.0 is installed. Upgrade with: pip install -U posttrain",
        ),
        (
            "posttrain>=0.0.1,<0.1",
            "needs posttrain >=0.0.1,<0.1 but 0.1.0 is installed. Upgrade with: pip install -U posttrain-method-fake",
        ),
    ],
)
def test_incompatible_versions(site, requires, sentence):
    site.add("fake", requires=requires)
    with pytest.raises(MethodError) as error:
        discovery.find("fake")
    assert str(error.value) == f"Method 'fake' 1.2.0 {sentence}"
    assert rows("fake")[0].problem == sentence


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"card": ""}, "module 'posttrain_method_fake' has no method.toml beside its code"),
        ({"card": "name = 3"}, "'name' is 3"),
        ({"card": "name = "}, "is not valid TOML"),
        ({"key": "fake-other"}, "its card says name 'fake', its entry point says 'fake-other'"),
        ({"requires": "posttrain >>= 1"}, "has a requirement 'posttrain >>= 1' that cannot be read"),
        ({"tier": "golden"}, "tier 'golden' is unknown"),
    ],
)
def test_broken_plugin_is_one_row_and_disturbs_nobody(site, arguments, reason):
    site.add("fake", **arguments)
    site.add("fake-good")
    (row,) = rows(arguments.get("key", "fake"))
    assert reason in row.problem
    assert "\n" not in row.problem
    with pytest.raises(MethodError):
        discovery.find(row.name)
    assert discovery.find("fake-good").problem is None


@pytest.mark.parametrize("value", ["os.path", "posttrain_method_fake:Config", "no_such_module_anywhere", "3x"])
def test_entry_point_that_is_no_top_level_module(site, value):
    site.metadata("fake-package", "1", f"[posttrain.methods]\nfake = {value}\n")
    (row,) = rows("fake")
    assert row.problem
    assert row.distribution == "fake-package"


def test_own_word_does_not_make_a_third_party_stable(site):
    site.add("fake", tier="stable")
    assert discovery.find("fake").card.tier == "experimental"


def test_catalogue_grants_stable_to_its_own_package_only(site, monkeypatch):
    fact = catalogue.Known("fake", "stable", "", ("preference",), (), "", "", "posttrain-method-fake")
    monkeypatch.setattr(discovery, "known", lambda: {"fake": fact})
    site.add("fake", tier="stable")
    assert discovery.find("fake").card.tier == "stable"


def test_catalogue_does_not_grant_stable_to_another_package(site, monkeypatch):
    fact = catalogue.Known("fake", "stable", "", ("preference",), (), "", "", "posttrain-method-fake")
    monkeypatch.setattr(discovery, "known", lambda: {"fake": fact})
    site.add("fake", tier="stable", distribution="somebody-elses")
    assert discovery.find("fake").card.tier == "experimental"


@pytest.mark.parametrize("place", [".", "src", "package"])
def test_folder_of_a_plugin_that_is_not_installed(site, tmp_path, place):
    package = site.add("fake-loose")
    project = tmp_path / "project"
    target = project / ("src" if place == "src" else ".") / package.name
    target.parent.mkdir(parents=True)
    package.rename(target)
    row = discovery.find_folder(target if place == "package" else project)
    assert row.name == "fake-loose"
    assert row.folder == target.resolve()


def test_folders_that_hold_no_method(site, tmp_path):
    with pytest.raises(MethodError, match=r"^There is no folder '.*absent'\. Make a plugin with: posttrain new NAME$"):
        discovery.find_folder(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MethodError, match=r"holds no method: no method\.toml in it"):
        discovery.find_folder(tmp_path / "empty")
    for name in ("fake-a", "fake-b"):
        site.add(name)
    with pytest.raises(MethodError, match="holds 2 methods"):
        discovery.find_folder(site.path)


@pytest.mark.parametrize(
    ("name", "expected"), [("dpo", False), ("./dpo", True), ("a/b", True), (".", True), ("~x", True)]
)
def test_what_counts_as_a_folder(name, expected):
    assert discovery.is_folder(name) is expected

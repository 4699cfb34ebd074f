"""Discovery: every state a plugin can be in is one row or one sentence, and nothing is imported."""

import importlib.machinery
import json
import shutil
import sys

import pytest
from posttrain import __version__
from posttrain.catalogue import catalogue, discovery, methods
from posttrain.cli.main import main
from posttrain.errors import MethodError, PosttrainError, SettingsError

from .conftest import CARD, ROOT

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
            f"needs posttrain >=99,<100 but {__version__} is installed. Upgrade with: pip install -U posttrain",
        ),
        (
            "posttrain>=0.0.1,<0.1",
            f"needs posttrain >=0.0.1,<0.1 but {__version__} is installed. "
            "Upgrade with: pip install -U posttrain-method-fake",
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


def released(monkeypatch, package):
    """Let the catalogue know the files in ``package`` as those of the stable method fake."""
    digest = catalogue.digest_of(package)
    fact = catalogue.Known("fake", "stable", "", ("preference",), (), "", "", "posttrain-method-fake", digest)
    monkeypatch.setattr(discovery, "known", lambda: {"fake": fact})


def test_stable_are_the_very_files_that_were_released(site, monkeypatch):
    package = site.add("fake", tier="stable")
    released(monkeypatch, package)
    assert discovery.find("fake").card.tier == "stable"
    assert discovery.find_folder(package).card.tier == "stable"
    assert discovery.modified(discovery.find("fake").card) is None
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "__init__.cpython-311.pyc").write_bytes(b"compiled")
    code = package / "__init__.py"
    code.write_bytes(code.read_bytes().replace(b"\n", b"\r\n"))
    assert discovery.find("fake").card.tier == "stable"


@pytest.mark.parametrize("change", ["code", "card", "file", "earlier", "compiled", "namesake"])
def test_other_files_under_a_stable_name_count_as_experimental_and_need_permission(site, tmp_path, monkeypatch, change):
    package = site.add("fake", tier="stable")
    released(monkeypatch, package)
    if change == "code":
        (package / "__init__.py").write_text((package / "__init__.py").read_text() + "# more\n")
    elif change == "card":
        (package / "method.toml").write_text((package / "method.toml").read_text() + "family = 'x'\n")
    elif change == "file":
        (package / "more.py").write_text("")
    elif change == "earlier":  # a module of that name before the installed one
        shutil.copytree(package, tmp_path / "early" / package.name)
        (tmp_path / "early" / package.name / "__init__.py").write_text(HOSTILE)
        monkeypatch.syspath_prepend(str(tmp_path / "early"))
    elif change == "compiled":  # Python takes it before the source
        (package / f"__init__{importlib.machinery.EXTENSION_SUFFIXES[0]}").write_bytes(b"")
    else:  # another distribution, of the same name or not, that has the files of another
        (package / "__init__.py").write_text(HOSTILE)
    row = discovery.find("fake")
    assert row.card.tier == "experimental"
    assert discovery.modified(row.card) == (
        f"'fake' is not the stable method of that name which posttrain {__version__} knows: its files are others. "
        "It counts as experimental."
    )
    monkeypatch.setenv("POSTTRAIN_ALLOW_PLUGINS", "other")
    with pytest.raises(SettingsError, match=r"^Method 'fake' of posttrain-method-fake is not among the allowed"):
        methods.load("fake")


def test_listings_and_show_say_that_a_stable_name_stands_for_other_files(site, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "1000")  # tables are cut at a terminal's width
    package = site.add("fake", tier="stable")
    released(monkeypatch, package)
    (package / "__init__.py").write_text((package / "__init__.py").read_text() + "# more\n")
    text = f"'fake' is not the stable method of that name which posttrain {__version__} knows: its files are others."
    for words in (["list-methods"], ["plugins"], ["show", "fake"]):
        discovery.installed.cache_clear()
        assert main(words) == 0
        assert text in capsys.readouterr().out


def test_the_stable_methods_of_this_project_are_those_of_the_catalogue():
    stable = [fact for fact in catalogue.known().values() if fact.tier == "stable"]
    assert {"sft", "dpo", "reward", "rloo", "grpo", "kto", "simpo"} < {fact.name for fact in stable}
    assert len(stable) == len([path for path in (ROOT / "plugins").iterdir() if (path / "pyproject.toml").is_file()])
    for fact in stable:
        assert discovery.find_folder(ROOT / "plugins" / fact.name).card.tier == "stable"


LINES = CARD.format(name="fake-bad", version="1", tier="experimental", schema="preference", requires="posttrain")
HEADERS = b"Metadata-Version: 2.4\nName: fake-bad\nVersion: 1\nAuthor: J\xf6rg\n"
POINT = b"[posttrain.methods]\nfake-bad"
#: Kind -> one file of a neighbour that is otherwise sound, its content, and the reason that the neighbour's row gives.
NEIGHBOURS = {
    "latin-metadata": ("METADATA", HEADERS, "its METADATA is not UTF-8 (byte 69)"),
    "latin-points": (
        "entry_points.txt",
        b"# J\xf6rg\n" + POINT + b" = posttrain_method_fake_bad\n",
        "its entry_points.txt is not UTF-8",
    ),
    "colons": ("entry_points.txt", POINT + b" = b:::c\n", "its entry point is 'fake-bad = b:::c', expected NAME ="),
    "empty": ("entry_points.txt", POINT + b" =\n", "its entry point is 'fake-bad =', expected NAME ="),
    "no-sign": ("entry_points.txt", POINT + b"\n", "its entry point is 'fake-bad', expected NAME ="),
    "latin-card": ("method.toml", b"name = '\xff'", "method.toml: is not valid TOML"),
    "deep-card": (
        "method.toml",
        b"name = " + b"[" * 1000,
        "method.toml: is not a card: its values are nested",
    ),
    "long-number": ("method.toml", b"name = " + b"9" * 5000, "method.toml: is not valid TOML"),
    "lines": ("method.toml", LINES.replace("y of", "y\\nof").encode(), "summary has 2 lines, expected one"),
    "deep-code": ("__init__.py", b"x = " + b"-" * 100_000 + b"1\n", "nested too deep"),
}


def test_broken_neighbours_are_a_row_each_and_touch_nobody(site, capsys):
    site.add("fake-good")
    for kind, (file, content, _) in NEIGHBOURS.items():
        package = site.add(f"fake-{kind}", version="1")
        info = site.path / f"posttrain_method_fake_{kind.replace('-', '_')}-1.dist-info"
        content = content.replace(b"fake_bad", package.name.removeprefix("posttrain_method_").encode())
        place = package if (package / file).exists() else info
        (place / file).write_bytes(content.replace(b"fake-bad", f"fake-{kind}".encode()))
    discovery.installed.cache_clear()
    for command in ("list-methods", "plugins"):
        assert main([command, "--json"]) == 0
        listed = {row["name"]: row["problem"] for row in json.loads(capsys.readouterr().out)}
        assert listed["fake-good"] is None
        for kind, (_, _, reason) in NEIGHBOURS.items():
            assert reason.replace("fake-bad", f"fake-{kind}") in listed[f"fake-{kind}"]
            assert "\n" not in listed[f"fake-{kind}"]
    assert main(["list-methods"]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {words[0] for words in printed if words[1] == "broken"} >= {f"fake-{kind}" for kind in NEIGHBOURS}
    assert methods.load("fake-good").name == "fake-good"
    for kind in NEIGHBOURS:
        with pytest.raises(PosttrainError) as error:
            methods.load(f"fake-{kind}")
        assert "\n" not in str(error.value)


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

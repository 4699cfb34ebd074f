"""Promotion: each criterion can fail alone, all met moves the method, and it can be moved back."""

import shutil
import subprocess
from pathlib import Path

import pytest
from posttrain.authoring.promote import criteria, move, plugin_folder
from posttrain.catalogue.cards import read_card
from posttrain.cli.main import main
from posttrain.contract import deprecations
from posttrain.contract.deprecations import Deprecation
from posttrain.errors import MethodError
from posttrain_testkit.trajectory import difference

ROOT = Path(__file__).resolve().parent.parent
EVIDENCE = """\
[result]
source = "a paper"
expected = 0.61
measured = 0.60
tolerance = 0.03
command = "posttrain train fake"
[strategies]
{strategies}
[release]
version = "0.1.0"
options = {{ beta = 2.0 }}
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository whose one experimental method meets every criterion."""
    root = tmp_path / "repository"
    (root / "core" / "posttrain" / "catalogue").mkdir(parents=True)
    (root / "core" / "posttrain" / "catalogue" / "catalogue.json").write_text("{}")
    (root / "pyproject.toml").write_text("[project]\n")
    monkeypatch.chdir(tmp_path)
    main(["new", "fake"])
    folder = root / "contrib" / "fake"
    shutil.copytree("fake", folder)
    card = folder / "posttrain_method_fake" / "method.toml"
    card.write_text(card.read_text().replace('"0.1.0"', '"0.2.0"'))
    (folder / "trajectory.json").write_text("{}")
    losses = "\n".join(f"{name} = 0.5" for name in ("single", "ddp", "fsdp", "deepspeed", "qlora"))
    (folder / "evidence.toml").write_text(EVIDENCE.format(strategies=losses))
    monkeypatch.chdir(root)
    return root


def met(folder, kit=True, change=None):
    return {one.name: one.met for one in criteria(folder, lambda _: kit, lambda _: change)}


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_all_met_moves_the_method_and_back(repository):
    folder = repository / "contrib" / "fake"
    assert all(met(folder).values()), met(folder)
    target = move(folder, "stable")
    assert target == repository / "plugins" / "fake"
    assert not folder.exists()
    card = read_card(target / "posttrain_method_fake" / "method.toml")
    assert (card.tier, card.version) == ("stable", "1.0.0")
    assert "5 - Production/Stable" in (target / "pyproject.toml").read_text()
    assert '"tier": "stable"' in (repository / "core/posttrain/catalogue/catalogue.json").read_text()
    back = move(target, "experimental")
    assert back == folder
    assert read_card(back / "posttrain_method_fake" / "method.toml").tier == "experimental"


@pytest.mark.parametrize(
    ("file", "old", "new", "missing"),
    [
        ("evidence.toml", "measured = 0.60", "measured = 0.50", "published or peer figure"),
        ("evidence.toml", 'command = "posttrain train fake"', "", "published or peer figure"),
        ("evidence.toml", "ddp = 0.5", "ddp = 0.501", "strategies agree"),
        ("evidence.toml", "ddp = 0.5", "", "strategies agree"),
        ("evidence.toml", "beta = 2.0", "beta = 1.0", "options unchanged for a release"),
        ("evidence.toml", 'version = "0.1.0"', 'version = "0.2.0"', "options unchanged for a release"),
        (
            "posttrain_method_fake/method.toml",
            "requires",
            "waivers = { check_x = 'why' }\nrequires",
            "no waivers",
        ),
    ],
)
def test_each_criterion_fails_alone(repository, file, old, new, missing):
    folder = repository / "contrib" / "fake"
    edit(folder / file, old, new)
    assert [name for name, ok in met(folder).items() if not ok] == [missing]


HELD_OUT = """\
[held_out]
source = "a file"
figure = "margin"
seeds = 3
untrained = 0.1
measured = 2.31
low = 2.2
high = 2.4
difference = 0.001
tolerance = 0.05
command = "a command"
[strategies]"""


def test_a_figure_on_held_out_rows_counts_where_it_was_measured(repository):
    folder = repository / "contrib" / "fake"
    name = "peer's figure on held-out rows"
    assert name not in met(folder)
    edit(folder / "evidence.toml", "[strategies]", HELD_OUT)
    assert met(folder)[name]
    for old, new in (
        ("measured = 2.31", "measured = 2.41"),
        ("untrained = 0.1", "untrained = 2.3"),  # training has moved nothing
        ("difference = 0.001", "difference = 0.06"),
        ("low = 2.2", "lower = 2.2"),
    ):
        edit(folder / "evidence.toml", old, new)
        assert [one for one, ok in met(folder).items() if not ok] == [name]
        edit(folder / "evidence.toml", new, old)


def test_options_of_a_release_are_those_of_its_tag(repository):
    def git(*words):
        subprocess.run(["git", "-C", repository, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    folder = repository / "contrib" / "fake"
    code = folder / "posttrain_method_fake" / "__init__.py"
    git("init", "--quiet")
    git("add", "--force", "contrib")
    git("commit", "--quiet", "--message", "first")
    assert all(met(folder).values())
    git("tag", "v0.1.0")
    assert all(met(folder).values())
    edit(code, "beta: float = 2.0", "beta: float = 1.0")
    edit(folder / "evidence.toml", "beta = 2.0", "beta = 1.0")  # says what it likes
    (found,) = (one for one in criteria(folder, lambda _: True, lambda _: None) if one.name.startswith("options"))
    assert (found.met, found.detail) == (False, "changed since 0.1.0: beta")


def test_missing_trajectory_and_failing_kit(repository):
    folder = repository / "contrib" / "fake"
    (folder / "trajectory.json").unlink()
    assert [name for name, ok in met(folder, kit=False).items() if not ok] == ["conformance kit", "trajectory"]


def test_trajectory_that_is_not_reproduced(repository):
    folder = repository / "contrib" / "fake"
    assert [name for name, ok in met(folder, change="Step 3 differs.").items() if not ok] == ["trajectory"]
    (found,) = (one for one in criteria(folder, lambda _: True, difference) if one.name == "trajectory")
    assert (found.met, "expected method, version and series" in found.detail) == (False, True)


def test_command_prints_what_is_missing_and_moves_nothing(repository, capsys, monkeypatch):
    monkeypatch.setattr("posttrain.cli.promote._kit_passes", lambda _: True)
    (repository / "contrib/fake/evidence.toml").unlink()
    assert main(["promote", "fake"]) == 1
    assert "missing  strategies agree: [strategies] of evidence.toml lacks single" in capsys.readouterr().out
    assert (repository / "contrib/fake").is_dir()


def test_unknown_method_and_foreign_folder(repository, tmp_path, monkeypatch, capsys):
    with pytest.raises(MethodError, match="Neither plugins/ nor contrib/ has a method 'absent'"):
        plugin_folder("absent", repository)
    monkeypatch.chdir(tmp_path)
    assert main(["promote", "fake"]) == 2
    assert "in no repository of posttrain" in capsys.readouterr().err


def test_no_deprecation_is_overdue():
    from posttrain import __version__

    assert deprecations.overdue(deprecations.DEPRECATIONS, __version__) == []


def test_overdue_is_noticed_and_the_warning_names_the_way_out(monkeypatch):
    entry = Deprecation("--old", "0.2", "0.4", "--new")
    assert deprecations.overdue({"old": entry}, "0.3.9") == []
    assert deprecations.overdue({"old": entry}, "0.4.0") == ["old"]
    monkeypatch.setitem(deprecations.DEPRECATIONS, "old", entry)
    with pytest.warns(
        DeprecationWarning, match=r"^--old is deprecated since posttrain 0\.2 and goes in 0\.4\. Use --new\.$"
    ):
        deprecations.warn("old")

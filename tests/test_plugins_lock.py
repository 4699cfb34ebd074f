"""``posttrain plugins audit`` against a lock file: whatever is not as it was is named, and nothing is imported."""

import json

import pytest
from posttrain.catalogue import discovery
from posttrain.cli.main import main
from posttrain.cli.plugins_lock import differences


@pytest.fixture
def locked(site, tmp_path, capsys):
    site.add("fake")
    file = tmp_path / "plugins.lock"
    assert main(["plugins", "audit", "--write-lock", str(file)]) == 0
    assert main(["plugins", "audit", "--lock", str(file)]) == 0
    assert f"are as '{file}' says" in capsys.readouterr().out
    return site, file


def audit(file, capsys):
    discovery.installed.cache_clear()
    code = main(["plugins", "audit", "--lock", str(file)])
    return code, capsys.readouterr().err


def test_the_lock_file_holds_packages_versions_and_the_code_that_would_run(locked):
    packages = json.loads(locked[1].read_text())["packages"]
    fake = packages["posttrain-method-fake"]
    assert fake["version"] == "1.2.0"
    assert fake["plugins"] == ["method fake = posttrain_method_fake"]
    assert {"posttrain_method_fake: __init__.py", "posttrain_method_fake: method.toml"} <= set(fake["files"])
    core = packages["posttrain"]
    assert "reward code = posttrain.rewards.code:code" in core["plugins"]
    assert "posttrain: sandbox/bridge.py" in core["files"]


def test_a_changed_a_new_and_a_missing_file_are_named(locked, capsys):
    site, file = locked
    code = site.path / "posttrain_method_fake" / "__init__.py"
    code.write_text(code.read_text() + "# other\n")
    (site.path / "posttrain_method_fake" / "more.py").write_text("")
    (site.path / "posttrain_method_fake" / "method.toml").rename(site.path / "method.toml")
    status, text = audit(file, capsys)
    assert status == 2
    assert "posttrain-method-fake: posttrain_method_fake: __init__.py changed" in text
    assert "posttrain-method-fake: posttrain_method_fake: more.py is new" in text
    assert "posttrain-method-fake: posttrain_method_fake: method.toml is gone" in text
    assert "Where this is meant, write it anew" in text


def test_a_module_earlier_on_the_path_is_found(locked, tmp_path, monkeypatch, capsys):
    """The record of the package is as it was; what would be imported is not."""
    _, file = locked
    shadow = tmp_path / "before" / "posttrain_method_fake"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(str(tmp_path / "before"))
    status, text = audit(file, capsys)
    assert status == 2
    assert "posttrain_method_fake: __init__.py changed" in text
    assert "it ran" not in text


def test_a_new_package_a_missing_one_and_another_version(locked, capsys):
    site, file = locked
    site.add("fake-two")
    lock = json.loads(file.read_text())
    lock["packages"]["posttrain-method-gone"] = {"version": "1", "plugins": [], "files": {}}
    lock["packages"]["posttrain-method-fake"]["version"] = "1.1.0"
    file.write_text(json.dumps(lock))
    status, text = audit(file, capsys)
    assert status == 2
    assert "posttrain-method-fake-two 1.2.0: not in the lock file (method fake-two = posttrain_method_fake_two)" in text
    assert "posttrain-method-gone: gone" in text
    assert "posttrain-method-fake: version 1.2.0, locked is 1.1.0" in text
    assert text.startswith("3 things are not as")


def test_only_the_first_files_of_a_package_are_listed():
    package = {"version": "1", "plugins": ["method a = b"], "files": {}}
    now = package | {"files": {f"f{n}": "x" for n in range(9)}, "plugins": ["method a = c"]}
    assert differences({"p": package}, {"p": now}) == [
        *("p: new plugin 'method a = c'", "p: gone plugin 'method a = b'"),
        *("p: f0 is new", "p: f1 is new", "p: f2 is new", "p: and 6 more files"),
    ]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"lock": 2, "packages": {}}', '{"lock": 1, "packages": 3}', "[" * 9999]
)
def test_what_is_no_lock_file_is_one_line(text, tmp_path, capsys):
    (tmp_path / "x.lock").write_text(text)
    assert main(["plugins", "audit", "--lock", str(tmp_path / "x.lock")]) == 2
    error = capsys.readouterr().err
    assert "is no lock file. Write one: posttrain plugins audit --write-lock FILE" in error
    assert error.count("\n") == 1


def test_flags_that_belong_to_the_audit(tmp_path, capsys):
    assert main(["plugins", "--lock", "x"]) == 2
    assert "belong to the audit" in capsys.readouterr().err
    assert main(["plugins", "audit", "--lock", str(tmp_path / "absent")]) == 2
    assert "cannot be read: No such file or directory" in capsys.readouterr().err
    assert main(["plugins", "audit", "--write-lock", str(tmp_path / "no" / "file")]) == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err

"""The list of allowed plugins holds for every kind of plugin in every command, and from Python."""

import ast
import json
import os
import sys

import posttrain
import pytest
from posttrain.catalogue import permission
from posttrain.cli.main import main
from posttrain.errors import SettingsError
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

from .conftest import CODE, ROOT

#: A module with one plugin of each kind that is no method; importing it leaves a mark.
PARTS = """
import pathlib

pathlib.Path({mark!r}).write_text("imported")


def score(completions):
    return [float(len(text)) for text in completions]


def judge(prompts, firsts, seconds):
    return [0.5 for _ in prompts]


def rows(argument):
    return [{{"prompt": "ab", "chosen": "cab", "rejected": "fg"}}, {{"prompt": "a", "chosen": "bc", "rejected": "h"}}]


def prompts(argument):
    return [{{"prompt": "ab"}}, {{"prompt": "a"}}]


class Watcher:
    pass


watch = Watcher()
"""
POINTS = """
[posttrain.rewards]
fake-score = fake_parts:score
fake-judge = fake_parts:judge
[posttrain.sources]
fake-rows = fake_parts:rows
fake-prompts = fake_parts:prompts
[posttrain.observers]
fake-watch = fake_parts:watch
"""
COMMON = ["--model", "model", "--steps", "2", "--save-every", "1", "--cache", "off", "--device", "cpu"]
COMMON += ["--progress", "quiet", "--batch-size", "2"]
ONLINE = ["train", "grpo", *COMMON, "--group-size", "2", "--max-new-tokens", "2", "--data"]
OFFLINE = ["train", "dpo", *COMMON, "--data"]
JUDGED = [*ONLINE, "prompts.jsonl", "--reward", "length", "--judge"]
OUT = ["--output", "run"]
#: Command -> the plugin in it that is refused.
REFUSED = {
    ("train", "fake", *COMMON, "--data", "rows.jsonl", *OUT): "Method 'fake' of posttrain-method-fake",
    ("train", "fake", *COMMON, "--data", "rows.jsonl", "--dry-run"): "Method 'fake' of posttrain-method-fake",
    (*OFFLINE, "fake-rows:2", *OUT): "Source 'fake-rows' of fake-parts",
    (*OFFLINE, "fake-rows:2", "--dry-run"): "Source 'fake-rows' of fake-parts",
    (*OFFLINE, "rows.jsonl", "--eval-data", "fake-rows", *OUT): "Source 'fake-rows' of fake-parts",
    (*OFFLINE, "rows.jsonl", "--observers", "fake-watch", *OUT): "Observer 'fake-watch' of fake-parts",
    (*OFFLINE, "rows.jsonl", "--observers", "fake-watch", "--dry-run"): "Observer 'fake-watch' of fake-parts",
    (*ONLINE, "prompts.jsonl", "--reward", "fake-score=0.5", *OUT): "Reward 'fake-score' of fake-parts",
    (*ONLINE, "prompts.jsonl", "--reward", "fake-score", "--dry-run"): "Reward 'fake-score' of fake-parts",
    (*JUDGED, "fake-judge", *OUT): "Reward 'fake-judge' of fake-parts",
    ("serve-rewards", "fake-score", "--port", "0"): "Reward 'fake-score' of fake-parts",
    ("check-data", "fake-rows"): "Source 'fake-rows' of fake-parts",
    ("check-data", "fake-rows", "--model", "model"): "Source 'fake-rows' of fake-parts",
    ("doctor", "--config", "fake.yaml"): "Method 'fake' of posttrain-method-fake",
    ("doctor", "--config", "folder.yaml"): "Method 'fake' of folder",
}


@pytest.fixture
def place(site, tmp_path, monkeypatch):
    """A stranger's packages, a model and data in the current folder."""
    monkeypatch.chdir(tmp_path)
    mark = f"import pathlib\npathlib.Path({str(tmp_path / 'mark')!r}).write_text('imported')\n"
    site.add("fake", code=CODE.replace("from posttrain import hookimpl", mark + "from posttrain import hookimpl"))
    (site.path / "fake_parts.py").write_text(PARTS.format(mark=str(tmp_path / "mark")))
    site.metadata("fake-parts", "1", POINTS)
    tiny_model().save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "ab", "chosen": "cab", "rejected": "fg"}\n' * 2)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "ab"}\n{"prompt": "a"}\n')
    (tmp_path / "fake.yaml").write_text("method: fake\nmodel: model\n")
    (tmp_path / "folder.yaml").write_text("method: ./site/posttrain_method_fake\nmodel: model\n")
    yield tmp_path
    sys.modules.pop("fake_parts", None)


def refused(place, capsys, words):
    """The one line of a command that loads nothing."""
    sys.modules.pop("fake_parts", None)
    assert main(list(words)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "is not among" in line]
    assert not (place / "mark").exists()
    assert not (place / "run").exists()
    return line


@pytest.mark.parametrize("how", ["variable", "flag"])
def test_no_command_loads_a_plugin_that_is_not_allowed(place, capsys, monkeypatch, how):
    if how == "variable":
        monkeypatch.setenv(permission.VARIABLE, "dpo,grpo")
    for words, named in REFUSED.items():
        line = refused(
            place, capsys, words if how == "variable" else [words[0], "--allow-plugins", "dpo,grpo", *words[1:]]
        )
        assert line.startswith(named), words
        assert "is not among the allowed plugins (dpo, grpo). Add it with: --allow-plugins dpo," in line


def test_the_conformance_kit_loads_none_either(place, capsys, monkeypatch):
    monkeypatch.setenv(permission.VARIABLE, "dpo,grpo")
    assert main(["check", "fake", "--only", "check_promise_holds"]) == 1
    assert "Method 'fake' of posttrain-method-fake is not among the allowed plugins" in capsys.readouterr().out
    assert not (place / "mark").exists()


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"method": "fake", "data": "rows.jsonl"}, "Method 'fake'"),
        ({"method": "dpo", "data": "fake-rows"}, "Source 'fake-rows'"),
        ({"method": "dpo", "data": "rows.jsonl", "observers": ["fake-watch"]}, "Observer 'fake-watch'"),
        ({"method": "grpo", "data": "prompts.jsonl", "reward": "fake-score"}, "Reward 'fake-score'"),
        ({"method": "grpo", "data": "prompts.jsonl", "reward": "length", "judge": "fake-judge"}, "Reward 'fake-judge'"),
    ],
)
def test_python_loads_none_either(place, monkeypatch, keywords, named):
    monkeypatch.setenv(permission.VARIABLE, "dpo,grpo")
    with pytest.raises(SettingsError, match=f"^{named} of .* is not among the allowed plugins"):
        posttrain.train(model="model", steps=1, device="cpu", output="run", cache="off", progress="quiet", **keywords)
    assert not (place / "mark").exists()


def test_what_is_allowed_trains_and_a_resumed_run_asks_again(place, capsys, monkeypatch):
    words = [*OFFLINE, "fake-rows", "--observers", "fake-watch", *OUT, "--allow-plugins"]
    assert main([*words, "dpo,fake-rows,fake-watch"]) == 0, capsys.readouterr().err
    assert (place / "mark").exists()
    (place / "mark").unlink()
    sys.modules.pop("fake_parts", None)
    resume = ["resume", "run", "--steps", "3"]
    for allowed, named in (("dpo", "Observer 'fake-watch'"), ("dpo,fake-watch", "Source 'fake-rows'"), ("a", "Method")):
        if allowed == "a":  # a run of a stranger's method
            facts = json.loads((place / "run" / "run.json").read_text()) | {"method": "fake"}
            (place / "run" / "run.json").write_text(json.dumps(facts))
        assert main([*resume, "--allow-plugins", allowed]) == 2
        assert capsys.readouterr().err.startswith(f"{named}")
    assert permission.VARIABLE not in os.environ


def test_without_a_list_everything_named_may_load(place, capsys):
    assert main(["check-data", "fake-rows"]) == 0, capsys.readouterr().err
    assert (place / "mark").exists()


def test_what_posttrain_brings_needs_no_permission(place, monkeypatch):
    from posttrain.rewards import load_rewards

    monkeypatch.setenv(permission.VARIABLE, "")
    assert [reward.name for reward in load_rewards(["length"])] == ["length"]


def test_a_package_that_calls_itself_posttrain_is_a_stranger(site, monkeypatch):
    from posttrain.rewards import load_rewards

    (site.path / "fake_evil.py").write_text("raise SystemExit('imported')")
    site.metadata("posttrain", "0.1.0", "[posttrain.rewards]\nevil = fake_evil:f\nlength = fake_evil:f\n")
    monkeypatch.setenv(permission.VARIABLE, "")
    for name in ("evil", "length"):
        with pytest.raises(
            SettingsError, match=rf"^Reward '{name}' of posttrain is not among the allowed plugins \(none\)"
        ):
            load_rewards([name])


@pytest.mark.parametrize(
    ("words", "rest", "value"),
    [
        (["train", "x"], ["train", "x"], None),
        (["train", "--allow-plugins", "a,b", "x", "--allow-plugins=c"], ["train", "x"], "a,b,c"),
        (["place", "--allow-plugins=", "--", "train", "--allow-plugins", "a"], None, ""),
    ],
)
def test_the_flag_is_taken_out_of_any_command(words, rest, value):
    expected = ["place", "--", "train", "--allow-plugins", "a"] if rest is None else rest
    assert permission.take_flag(words) == (expected, value)


def test_the_flag_without_a_value(capsys):
    for words in (["train", "--allow-plugins"], ["train", "--allow-plugins", "--steps", "1"]):
        assert main(words) == 2
        assert capsys.readouterr().err.startswith("Flag '--allow-plugins' needs a value: names of plugins")


def test_entry_points_are_read_and_imported_in_one_file():
    """No other file of the core asks for entry points, or imports a module whose name is not written in it."""
    found = set()
    for path in (ROOT / "core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if text.endswith((".entry_points", "importlib.import_module", "metadata.distributions")):
                found.add((path.name, text.rpartition(".")[2]))
    assert found == {
        ("entries.py", "distributions"),
        ("entries.py", "import_module"),
        ("__init__.py", "import_module"),  # posttrain's own public names
        ("main.py", "import_module"),  # its own commands
        ("forks.py", "import_module"),  # its own loaders, in a process of their own
        ("imports.py", "import_module"),  # its own interface
        ("select.py", "import_module"),  # its own strategies
        ("testkit.py", "import_module"),  # its own test kit
    }

"""Options named like secrets: a run uses them, none of its files holds them, and a resumed run asks for them."""

import json

import pytest
from posttrain.cli.main import main
from posttrain.distributed.restart import continued
from posttrain.errors import SettingsError
from posttrain.settings import Settings, secret_options
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

SECRET = "s3cr3t-of-mine"
REWARD = f"""
def f(completions, api_key: str, mark: str = "a"):
    assert api_key == {SECRET!r}, "another key"
    return [float(text.count(mark)) for text in completions]
"""
WORDS = ["train", "grpo", "--model", "model", "--data", "prompts.jsonl", "--reward", "f.py:f", "--output", "run"]
WORDS += ["--steps", "1", "--group-size", "2", "--batch-size", "2", "--max-new-tokens", "2", "--cache", "off"]
WORDS += ["--device", "cpu", "--progress", "quiet", "--save-every", "1", "--reward-options"]


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *((name, True) for name in ("f.api_key", "f.key", "f.hf-token", "f.apikey", "f.PASSWORD", "key", "a.b.secret")),
        *((name, False) for name in ("f.key_env", "f.max_tokens", "f.tokenizer", "f.monkey", "f.mark", "keyed")),
    ],
)
def test_what_is_named_like_a_secret(name, secret):
    assert secret_options.is_secret(name) is secret


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A model, data and a reward that wants a key, in the current folder."""
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "ab"}\n{"prompt": "a"}\n')
    (tmp_path / "f.py").write_text(REWARD)
    return tmp_path


def files_with_it(folder):
    return [file for file in folder.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]


def test_a_secret_is_used_and_not_written(place, capsys):
    assert main([*WORDS, f"f.api_key={SECRET}", "--reward-options", "f.mark=b"]) == 0, capsys.readouterr().err
    assert files_with_it(place / "run") == []
    stored = json.loads((place / "run" / "run.json").read_text())["settings"]["reward_options"]
    assert stored == {"f.api_key": "(not kept)", "f.mark": "b"}
    capsys.readouterr()
    assert main(["resume", "run", "--steps", "2"]) == 2
    assert capsys.readouterr().err == (
        "Option 'f.api_key' is named like a secret, so its value was not kept in the run's files. Give it again: "
        "--reward-options f.api_key=VALUE, or --reward-options f.api_key=env:VARIABLE\n"
    )
    assert main(["resume", "run", "--steps", "2", "--reward-options", "f.mark=c"]) == 2
    assert capsys.readouterr().err.startswith(
        "'reward_options f.mark' cannot change in a resumed run; of these options"
    )
    assert main(["resume", "run", "--steps", "2", "--reward-options", f"f.api_key={SECRET}"]) == 0
    assert files_with_it(place / "run") == []


def test_a_secret_of_the_environment_is_looked_up_each_time(place, capsys, monkeypatch):
    monkeypatch.setenv("MY_KEY", SECRET)
    assert main([*WORDS, "f.api_key=env:MY_KEY"]) == 0, capsys.readouterr().err
    assert files_with_it(place / "run") == []
    assert main(["resume", "run", "--steps", "2"]) == 0, capsys.readouterr().err
    monkeypatch.delenv("MY_KEY")
    capsys.readouterr()
    assert main(["resume", "run", "--steps", "3"]) == 2
    assert capsys.readouterr().err == (
        "Option 'f.api_key' is 'env:MY_KEY', and the environment has no variable 'MY_KEY'. Set it.\n"
    )


def test_printed_configuration_hides_it(place, capsys):
    assert main([*WORDS, f"f.api_key={SECRET}", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert SECRET not in printed
    assert "f.api_key: (not kept)" in printed


def test_a_restarted_command_is_the_same_run_and_brings_its_secret(tmp_path):
    """Restarts compare the command with run.json, in which the secret is hidden."""
    settings = Settings(output=str(tmp_path), max_restarts=1, reward_options={"f.key": SECRET, "f.mark": "a"})
    facts = {"method": "grpo", "settings": json.loads(json.dumps(secret_options.hidden(settings.flat()), default=str))}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    (tmp_path / "checkpoints" / "step-1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-1" / "state.json").write_text("{}")
    assert continued("grpo", settings) == (tmp_path, settings)
    assert secret_options.given(settings.flat()) == {"reward_options": {"f.key": SECRET}}


def test_other_options_that_begin_with_env_stay_as_they_are():
    assert secret_options.revealed("reward_options", {"regex.pattern": "env:HOME"}) == {"regex.pattern": "env:HOME"}
    with pytest.raises(SettingsError, match=r"^Option 'password' is 'env:NO_SUCH_VARIABLE', and the environment"):
        secret_options.revealed("judge_options", {"password": "env:NO_SUCH_VARIABLE"})

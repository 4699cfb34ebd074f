"""Secrets that are planted in the environment and in options reach no file, no tracker, no output and no error."""

import json
from pathlib import Path

import pytest
from posttrain.cli.main import main
from posttrain.errors import RunFailed
from posttrain.rewards import load_rewards, score
from posttrain.settings import secret_options

VARIABLES = ("HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY", "POSTTRAIN_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_KEY")
REWARD = """
import os
calls = []
def f(completions, api_key, columns=None):
    calls.append(1)
    if len(calls) > 1:
        raise ConnectionError(f"401: the key {api_key} or " + os.environ["OPENAI_API_KEY"] + " is not known")
    return [float(len(completion)) for completion in completions]
"""
ENVIRONMENT = """
from posttrain import Environment, Observation
class Quiz(Environment):
    def __init__(self, api_key: str = ""):
        self.api_key = api_key
        assert not api_key.startswith("(")
    @classmethod
    def rows(cls, size=2, seed=0):
        return [{"prompt": "3 1 >"}] * size
    def reset(self, row, seed):
        if row.get("fails", True):
            raise ConnectionError(f"the key {self.api_key} is not known")
"""


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Values that stand nowhere by chance; with letters that JSON writes in another way."""
    values = {name: f'planted-"{name.lower()}"-ü-{place}' for place, name in enumerate(VARIABLES)}
    for name, value in values.items():
        monkeypatch.setenv(name, value if name != "HF_TOKEN" else value.replace("ü", "u"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "3 1 >"}\n{"prompt": "2 1 >"}\n')
    (tmp_path / "f.py").write_text(REWARD)
    (tmp_path / "quiz.py").write_text(ENVIRONMENT)
    return ["planted-", "option-secret"]


WORDS = ["train", "grpo", "--model", "example", "--batch-size", "1", "--group-size", "2", "--max-new-tokens", "4"]
WORDS += ["--no-verify-saved", "--output", "run", "--log-every", "1", "--report"]


def seen(folder, words, capsys):
    """Files and streams in which one of the words stands."""
    files = [str(file) for file in folder.rglob("*") if file.is_file()]
    found = [file for file in files for word in words if word.encode() in Path(file).read_bytes()]
    streams = capsys.readouterr()
    return found + [word for word in words if word in streams.out + streams.err], streams


def test_nothing_of_a_run_that_fails_repeats_a_secret(planted, tmp_path, capsys):
    words = [*WORDS, "--data", "prompts.jsonl", "--reward", "f.py:f", "--track", "tensorboard", "--steps", "3"]
    words += ["--reward-options", "f.api_key=option-secret-1", "--save-every", "1"]
    assert main(words) == 1
    found, streams = seen(tmp_path / "run", planted, capsys)
    assert found == []
    assert "Reward 'f' raised ConnectionError" in streams.err
    assert "401: the key *** or *** is not known" in streams.err
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [event["code"] for event in events if "the key *** or ***" in event["message"]] == ["failed"]


def test_options_of_environments_are_kept_like_those_of_rewards(planted, tmp_path, capsys):
    words = [*WORDS, "--environment", "quiz.py:Quiz", "--environment-options"]
    assert main([*words, "api_key=option-secret-2", "--steps", "1"]) == 1
    found, streams = seen(tmp_path / "run", planted, capsys)
    assert found == []
    assert "the key *** is not known" in streams.err
    stored = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["environment_options"]
    assert stored == {"api_key": "(not kept)"}
    assert main([*words, "api_key=env:MY_KEY", "--overwrite", "--steps", "1"]) == 1
    found, streams = seen(tmp_path / "run", planted, capsys)
    assert found == []
    assert "the key *** is not known" in streams.err


def test_an_error_in_python_repeats_none_either(planted):
    rewards = load_rewards(["f.py:f"], {"f.api_key": "option-secret-3"})
    score(rewards, ["p"], ["c"], {})
    with pytest.raises(RunFailed, match=r"the key \*\*\* or \*\*\* is not known") as found:
        score(rewards, ["p"], ["c"], {})
    assert "option-secret" not in str(found.value)


def test_short_values_and_other_texts_stay(monkeypatch):
    monkeypatch.setenv("SHORT_KEY", "1234567")
    monkeypatch.setenv("LONG_KEY", "a long value")
    assert secret_options.redacted({"a": ["1234567", ("a long value!",)], "b": 3}) == {
        "a": ["1234567", ["***!"]],
        "b": 3,
    }

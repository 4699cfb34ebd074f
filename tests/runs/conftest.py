"""Runs to look at: a real tiny one, and folders that are written line by line."""

import pytest
from posttrain import api
from posttrain.runs.directory import RunDirectory
from posttrain_testkit.tiny import count_of_a, tiny_model, tiny_tokenizer


def shortness(prompts, completions):
    return [-len(text) / 10 for text in completions]


def train_tiny(folder, **keywords):
    """A real run of grpo on a model of a few thousand parameters: two rewards, four prompts, eight answers a step."""
    usual = {"batch_size": 2, "group_size": 4, "max_new_tokens": 6, "steps": 6, "learning_rate": 1e-2}
    usual |= {"rules": {"all": "off"}}  # what is said of a run is planted
    usual |= {"samples_per_step": 8, "progress": "quiet", "cache": "off", "device": "cpu"}
    objects = {"model": tiny_model(), "tokenizer": tiny_tokenizer(), "reward": [count_of_a, shortness]}
    objects |= {"data": [{"prompt": p} for p in ("ab", "abc", "a", "abcd")], "eval_data": [{"prompt": "b"}]}
    return api.train("grpo", output=str(folder), **(usual | objects | keywords))


@pytest.fixture
def train_grpo():
    """Train: ``train_grpo(folder, **options)``."""
    return train_tiny


@pytest.fixture(scope="session")
def grpo_run(tmp_path_factory):
    """The folder of a finished run; nobody writes into it."""
    return train_tiny(tmp_path_factory.mktemp("runs") / "grpo").path


@pytest.fixture
def write_run(tmp_path):
    """Write the folder of a run as a run does, without a model."""

    def write(name="run", values=(3.0, 2.0, 1.0), end="finished", total=None, **facts):
        directory = RunDirectory(tmp_path / name)
        directory.path.mkdir(parents=True)
        settings = {"model": "a/model", "learning_rate": 1e-3, "output": str(directory.path)}
        settings |= facts.pop("settings", {})
        directory.create(
            {"method": "sft", "total_steps": total or len(values), "settings": settings, "options": {}} | facts
        )
        directory.event("started", "info", f"{len(values)} steps of sft", evidence={"step": 0})
        for step, value in enumerate(values, 1):
            line = {"step": step, "loss": value, "tokens": 10, "tokens_per_second": 20.0, "seconds": 0.5}
            directory.metrics(line | {"grad_norm": 1.0, "learning_rate": 1e-3})
        if end:
            severity = "info" if end == "finished" else "error"
            directory.event(end, severity, f"{end} it is", evidence={"step": len(values)})
        return directory

    return write

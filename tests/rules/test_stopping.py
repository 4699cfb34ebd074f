"""What a run does about an alert: it goes on, or ends saved with exit code 3; and what is said of a first contact."""

import pytest
from posttrain import hookimpl
from posttrain.errors import RunStopped, SettingsError

from ..faults.test_checkpoints import events
from ..training.conftest import ROWS, train  # noqa: F401  a fixture

#: Marks who speaks, as templates of chat models do.
CHAT = "{% for message in messages %}g{{ message['content'] }}h{% endfor %}{% if add_generation_prompt %}g{% endif %}"


@pytest.fixture
def chat_template(tmp_path):
    file = tmp_path / "chat.jinja"
    file.write_text(CHAT)
    return str(file)


def nothing(prompts, completions):
    return [0.0] * len(completions)


def test_a_rule_that_stops_ends_the_run_saved(train):  # noqa: F811
    """Exit code 3, the checkpoint of that step, an error in the events, and one sentence that says how to go on."""
    with pytest.raises(RunStopped) as caught:
        train("grpo", reward=nothing, steps=6, rules={"dead-reward": "stop"})
    assert caught.value.exit_code == 3
    text = str(caught.value)
    path = text.rpartition("posttrain resume ")[2]
    assert "[dead-reward] the reward is 0 for every answer of 2 steps" in text
    (alert,) = (event for event in events_of(path) if event["code"] == "dead-reward")
    assert (alert["kind"], alert["severity"], alert["evidence"]["step"]) == ("alert", "error", 2)
    assert [event["evidence"] for event in events_of(path) if event["code"] == "checkpoint"] == ["step-2"]
    assert events_of(path)[-2]["code"] == "stopped"


def events_of(path):
    from posttrain.runs.directory import RunDirectory

    return RunDirectory(path).events()


def test_a_rule_that_is_off_says_nothing(train):  # noqa: F811
    run = train("grpo", reward=nothing, steps=3, rules={"dead-reward": "off", "plain-prompts": "off"})
    assert run.directory.alerts() == []


def test_thresholds_are_options(train):  # noqa: F811
    run = train("grpo", reward=nothing, steps=4, rule_options={"dead-reward.start": "3"})
    assert [event["evidence"]["step"] for event in events(run.path, "dead-reward")] == [3]


def test_a_rule_that_there_is_not_is_refused_before_anything_is_made(train, tmp_path):  # noqa: F811
    with pytest.raises(SettingsError, match="Unknown rule 'dead-rewards'"):
        train("grpo", rules={"dead-rewards": "off"})
    assert not list(tmp_path.glob("run-*"))


def test_observers_are_told(train, chat_template):  # noqa: F811
    told = []

    class Listener:
        @hookimpl
        def posttrain_alert(self, run, event):
            told.append((event["code"], run.step))

    train("grpo", reward=nothing, steps=3, observers=[Listener()], chat_template=chat_template)
    assert told == [("plain-prompts", 1), ("dead-reward", 2)]


def test_first_contact_is_said_at_once_with_the_way_out(train, capsys, chat_template):  # noqa: F811
    """A chat model that is given plain text, and a reward that nobody gets."""
    train("grpo", reward=nothing, steps=2, progress="plain", chat_template=chat_template)
    said = capsys.readouterr().err
    assert "8 prompts are plain text and the model has a chat template" in said
    assert "--chat" in said
    assert "the reward is 0 for every answer of 2 steps" in said


def test_chat_puts_plain_text_into_the_template(train, chat_template):  # noqa: F811
    """The prompt is what a user says; the reward gets it as it is in the rows."""
    seen = []

    def reward(prompts, completions):
        seen.extend(prompts)
        return [float(text.count("a")) for text in completions]

    own = {"chat_template": chat_template, "steps": 1}
    run = train("grpo", reward=reward, chat=True, **own)
    assert not events(run.path, "plain-prompts")
    assert set(seen) == {row["prompt"] for row in ROWS["grpo"]}
    chat, plain = train("sft", chat=True, **own), train("sft", **own)
    assert chat.directory.facts()["data"]["plain_prompts"] == 0
    assert plain.directory.facts()["data"]["plain_prompts"] == 8
    messages = [
        {"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}]}
        for r in ROWS["sft"]
    ]
    same = train("sft", data=messages, train_on="completion", **own)
    assert chat.metrics[0]["loss"] == same.metrics[0]["loss"] != plain.metrics[0]["loss"]


def test_a_template_that_adds_nothing_is_no_fault(train):  # noqa: F811
    """The tiny tokenizer's template writes messages one after the other: plain prompts are what it would write."""
    assert train("grpo", steps=1).directory.alerts() == []


def test_samples_show_every_prompt_before_a_second_answer(train):  # noqa: F811
    import json

    run = train("grpo", steps=1, samples_per_step=10)
    groups = [json.loads(line)["group"] for line in (run.path / "samples.jsonl").read_text().splitlines()]
    assert sorted(groups) == [0, 0, 1, 1, 2, 3, 4, 5, 6, 7]

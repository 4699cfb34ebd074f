"""Episodes: what is trained is what was sampled, nothing else, whatever the environment does and however slow it is."""

import json
import random
import time

import pytest
import torch
from posttrain import Environment, Observation, api, tool
from posttrain.contract.generation import Completion, Episode
from posttrain.contract.rollout import Rollout, Rollouts
from posttrain.environments.calculator import Calculator
from posttrain.errors import RewardError, RunFailed, SettingsError
from posttrain_testkit.tiny import count_of_a, tiny_model, tiny_tokenizer

OPTIONS = {
    "group_size": 4,
    "max_new_tokens": 5,
    "batch_size": 2,
    "steps": 3,
    "learning_rate": 1e-2,
    "schedule": "constant",
    "progress": "quiet",
    "cache": "off",
    "device": "cpu",
    "max_turns": 3,
}
TEXTS = [{"prompt": prompt} for prompt in ("ab", "abc", "a", "abcd")]
TALKS = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in TEXTS]


class Echo(Environment):
    """Answers twice with a text of its own, and counts the letter a."""

    turns = 0

    def step(self, message):
        self.turns += 1
        return Observation("hh", message["content"][:4].count("a") / 4, done=self.turns == 2)


class Slow(Echo):
    """The same, after a random while."""

    def step(self, message):
        time.sleep(random.random() * 0.03)
        return super().step(message)


@pytest.fixture
def train(tmp_path):
    calls = iter(range(100))

    def call(method="grpo", **changes):
        own = {"model": tiny_model(), "tokenizer": tiny_tokenizer(), "data": TEXTS, "environment": Echo}
        return api.train(method, **(OPTIONS | own | {"output": str(tmp_path / f"run-{next(calls)}")} | changes))

    return call


def episodes(run):
    return [json.loads(line) for line in (run.path / "episodes.jsonl").read_text().splitlines()]


def series(run):
    return [line["loss"] for line in run.metrics], [line["reward"] for line in run.metrics]


@pytest.mark.parametrize("rows", [TEXTS, TALKS], ids=["text", "messages"])
def test_sampled_tokens_alone_are_trained_with_the_log_probs_of_the_sampler(train, rows):
    run = train(data=rows, updates_per_rollout=2, steps=2, learning_rate=0.0)
    tokenizer = run.tokenizer
    seen = 0
    for example in run.source.buffer:
        (sequence,) = example.sequences["completion"]
        ids, trained = sequence.ids, sequence.trained
        said = tokenizer.decode(ids[~trained], skip_special_tokens=True)
        assert set(said) <= set("abcdh")  # prompts and the environment's own words
        assert sequence.per_token["sampled_logps"].shape == (sequence.count,)
        # the trainer, reading the whole episode in one pass without any cache, gives what the sampler gave
        with torch.no_grad():
            logits = run.policy.inner.eval()(input_ids=ids[None]).logits[0]
        logps = logits[:-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0][trained[1:]]
        torch.testing.assert_close(sequence.per_token["sampled_logps"], logps, rtol=0, atol=1e-4)
        seen += int((~trained).sum()) > len(tokenizer(rows[0]["prompt"] if rows is TEXTS else "a")["input_ids"])
    assert seen, "no episode went beyond its first turn"


def test_plain_text_needs_no_chat_template(train):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    assert series(train(tokenizer=tokenizer)) == series(train())
    with pytest.raises(SettingsError, match="has tools, and the tokenizer has no chat template to show them in"):
        train(tokenizer=tokenizer, environment=Calculator, data=None)


def test_rewards_of_turns_add_up_and_the_last_turn_gets_the_rest(train):
    run = train(reward=count_of_a, steps=2)
    for one in episodes(run):
        own = sum(one["turn_rewards"])
        answer = [message for message in one["messages"] if message["role"] == "assistant"][-1]["content"]
        assert one["reward"] == pytest.approx(own + count_of_a([""], [answer])[0])
    line = run.metrics[-1]
    assert line["reward"] == pytest.approx(line["reward_environment"] + line["reward_count_of_a"], abs=1e-6)


def test_a_slow_environment_changes_no_number(train):
    assert series(train(environment=Echo)) == series(train(environment=Slow)) == series(train(environment=Slow))


def test_an_episode_ends_where_its_tokens_or_turns_do(train):
    class Endless(Environment):
        def step(self, message):
            return Observation("hh", 0.1)

    turns = train(environment=Endless, max_turns=2)
    assert {one["end"] for one in episodes(turns)} <= {"turns", "tokens"}
    assert max(len(one["turn_rewards"]) for one in episodes(turns)) == 2
    short = train(environment=Endless, max_turns=9, episode_tokens=7)
    assert {one["end"] for one in episodes(short)} == {"tokens"}
    for example in short.source.buffer:
        assert len(example.sequences["completion"][0].ids) - 4 <= 7


def test_an_episode_ends_after_its_seconds(train):
    class Tired(Echo):
        def step(self, message):
            time.sleep(0.02)
            return Observation("hh", 0.0)

    found = episodes(train(environment=Tired, episode_seconds=0.01, steps=1))
    assert {one["end"] for one in found} <= {"seconds", "tokens"}
    assert "seconds" in {one["end"] for one in found}


def test_what_an_environment_that_fails_does_to_the_run(train):
    class Fails(Echo):
        def step(self, message):
            if len(message["content"]) > 1:
                raise ValueError("no\nluck")
            return Observation("h", 0.5, done=True)

    with pytest.raises(RunFailed, match=r"The environment Fails failed at turn 1 of the prompt .* ValueError: no luck"):
        train(environment=Fails)
    ended = train(environment=Fails, environment_errors="end", reward=count_of_a)
    assert "error" in {one["end"] for one in episodes(ended)}
    dropped = train(environment=Fails, environment_errors="drop")
    assert "error" not in {one["end"] for one in episodes(dropped)}


def test_an_environment_that_hangs_is_given_up(train):
    class Hangs(Echo):
        def step(self, message):
            time.sleep(3 if len(message["content"]) > 1 else 0)
            return Observation("h", 0.5, done=True)

    begun = time.monotonic()
    with pytest.raises(RunFailed, match=r"TimeoutError: no answer in 0\.2 seconds"):
        train(environment=Hangs, tool_timeout=0.2)
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("method", ["rloo", "dapo", "ppo", "reinforce", "gspo"])
def test_methods_learn_from_episodes_unchanged(train, method):
    run = train(method, steps=2)
    assert all(line["loss"] == line["loss"] for line in run.metrics)
    assert run.metrics[0]["turns"] > 1


def test_a_resumed_run_is_the_one_that_was_not_interrupted(train, tmp_path):
    whole = train(steps=4)
    half = train(steps=2, save_every=2)
    own = {"model": tiny_model(), "tokenizer": tiny_tokenizer(), "data": TEXTS, "environment": Echo}
    resumed = api.resume(half.path, steps=4, **own)
    assert series(resumed) == series(whole)
    assert [one["messages"] for one in episodes(resumed)] == [one["messages"] for one in episodes(whole)]


def test_micro_batches_change_nothing(train):
    whole, parts = train(dtype="float64"), train(dtype="float64", micro_batch_size=1)
    assert series(parts)[0] == pytest.approx(series(whole)[0], abs=1e-9)


def test_turns_of_tokens_and_rewards_as_a_method_sees_them():
    def rollout(sampled, turn, rewards, reward):
        episode = Episode(torch.tensor([1]), torch.tensor(sampled), torch.tensor(turn), rewards, [], "done")
        ids = torch.arange(len(sampled)) + 4
        made = Completion(ids, -ids.float(), True, "", episode=episode)
        return Rollout(0, torch.tensor([1]), made, {}, reward)

    found = Rollouts(
        [rollout([True, True, False, True], [0, 0, 0, 1], [0.5, 1.0], 2.0), rollout([True], [0], [0.25], 0.25)],
        lambda *_: [],
    )
    assert found.mask.tolist() == [[True, True, True], [True, False, False]]
    assert found.sampled_logps.tolist() == [[-4, -5, -7], [-4, 0, 0]]
    assert found.turn.tolist() == [[0, 0, 1], [0, 0, 0]]
    assert found.turn_rewards.tolist() == [[0.5, 1.5], [0.25, 0.0]]  # 0.5 from another reward is in the last turn
    assert found.items[0].sequence().trained.tolist() == [False, True, True, False, True]
    kept = Rollout.of(found.items[0].kept(), 3)
    assert kept.sequence().trained.tolist() == [False, True, True, False, True]
    assert kept.old_logps.tolist() == [-4, -5, -7]


def test_functions_are_tools_and_need_a_reward_and_a_template(train):
    def double(word: str) -> str:
        """Say a word twice.

        Args:
            word: The word.
        """
        return word * 2

    with pytest.raises(SettingsError, match="learns from rewards and none was given"):
        train(environment=None, tools=[double], data=TALKS)
    model = tiny_model()
    model.config.max_position_embeddings = 1024  # the description is long in single letters
    run = train(environment=None, tools=[double], data=TALKS, reward=count_of_a, max_length=900, model=model, steps=1)
    assert run.metrics[0]["turns"] == 1.0  # the tiny model calls nothing

    def untold(word):
        return word

    with pytest.raises(SettingsError, match="Tool 'untold' cannot be described to a model"):
        train(environment=None, tools=[untold], reward=count_of_a)
    with pytest.raises(RewardError, match=r"there is no file 'nowhere.py'"):
        train(environment=None, tools=["nowhere.py:double"], reward=count_of_a)


def test_errors_of_tools_are_told_to_the_model():
    from posttrain.environments.parsing import call
    from posttrain.environments.tools import run_calls, tools_in

    class Own(Environment):
        @tool
        def halve(self, number: int) -> float:
            """Halve it.

            Args:
                number: What to halve.
            """
            return number / 2

        @tool
        def leave(self) -> None:
            """Leave."""
            raise SystemExit(1)

    def said(*calls):
        return [one["content"] for one in run_calls(list(calls), tools_in(Own()))]

    assert said(call("halve", {"number": 3}), call("halve", {"number": "8"})) == ["1.5", "4.0"]
    assert said(call("half", {})) == ["Error: there is no tool 'half'. Tools: halve, leave."]
    assert said(call("halve", {"n": 1})) == ["Error: halve: it has no argument 'n'. Arguments: number."]
    assert said(call("halve", {})) == ["Error: halve: the argument 'number' is missing."]
    assert said(call("halve", {"number": "x"})) == ["Error: halve: 'number' is \"x\", expected a number."]
    assert said(call("leave", {})) == ["Error: SystemExit: 1"]


def test_options_of_an_environment_reach_it_and_its_rows(train):
    class Counts(Echo):
        def __init__(self, step: int = 1):
            self.step_size = step

        @classmethod
        def rows(cls, size=2, seed=0):
            return [{"prompt": "ab" * (1 + seed)} for _ in range(size)]

        def step(self, message):
            return Observation("h", float(self.step_size), done=True)

    options = {"step": "3", "size": "4", "seed": "1"}
    run = train(environment=Counts, data=None, environment_options=options, steps=2, max_new_tokens=20)
    assert {one["reward"] for one in episodes(run)} <= {0.0, 3.0}  # 0 where the answer was cut off
    assert {one["prompt"] for one in episodes(run)} == {"abab"}
    with pytest.raises(SettingsError, match=r"Environment 'Counts' has no option 'stop'\. Did you mean 'step'\?"):
        train(environment=Counts, environment_options={"stop": "3"})
    with pytest.raises(SettingsError, match=r"Environment 'Echo' makes no rows\. Give the prompts: --data FILE"):
        train(data=None)
    with pytest.raises(SettingsError, match="'sft' learns from data, and an environment or tools answer"):
        train("sft", data=[{"prompt": "a", "completion": "b"}])


def test_so_many_environments_answer_at_one_time(train):
    running, most = [], []

    class Busy(Echo):
        def step(self, message):
            running.append(self)
            most.append(len(running))
            time.sleep(0.01)
            running.remove(self)
            return super().step(message)

    train(environment=Busy, tool_workers=2, steps=1)
    assert max(most) == 2


def test_another_episode_begins_as_one_ends(train):
    begun, ended, most = [], [], []

    class Held(Echo):
        def reset(self, row, seed):
            begun.append(self)
            most.append(len(begun) - len(ended))

        def close(self):
            ended.extend([self] * (self in begun))  # one is made and closed to see what it is

    limited = train(environment=Held, episodes_at_once=3, steps=2)
    assert (len(begun), len(ended), max(most)) == (16, 16, 3)
    assert series(limited) == series(train(steps=2))


def test_an_environment_that_does_not_begin_ends_the_run(train):
    class Late(Echo):
        def reset(self, row, seed):
            raise OSError("no room")

    with pytest.raises(RunFailed, match=r"An environment does not begin the prompt 'ab.*': OSError: no room"):
        train(environment=Late)


def test_waiting_for_a_worker_is_no_answer_that_takes_too_long(train):
    """Sixteen episodes of a twentieth of a second, one after the other, take longer than the limit of each."""

    class Busy(Echo):
        def step(self, message):
            time.sleep(0.05)
            return super().step(message)

    run = train(environment=Busy, tool_workers=1, tool_timeout=0.25, steps=1, group_size=8, max_new_tokens=30)
    assert {one["end"] for one in episodes(run)} <= {"done", "tokens"}


def test_a_row_tells_the_template_what_it_wants(train):
    """Both variables of the template at every turn, the row's before the run's."""
    template = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{{ first }}{{ second }}"
    )
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    rows = [TALKS[0] | {"chat_template_kwargs": {"second": "d"}}, TALKS[1]]
    own = {"chat_template_kwargs": {"first": "g", "second": "c"}, "updates_per_rollout": 2}
    run = train(tokenizer=tokenizer, data=rows, steps=1, **own)
    seen = set()
    for example, line in zip(run.source.buffer, episodes(run), strict=True):
        (sequence,) = example.sequences["completion"]
        end = "gd" if line["prompt"][0]["content"] == "ab" else "gc"
        untrained = tokenizer.decode(sequence.ids[~sequence.trained])
        turns = len(line["turn_rewards"])
        assert untrained == line["prompt"][0]["content"] + end + ("hh" + end) * (turns - 1)
        seen.add((end, turns > 1))
    assert {("gd", True), ("gc", True)} <= seen


def test_thinking_that_the_template_leaves_out_is_kept_or_refused(train, capsys):
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('g')[-1] }}"
        "{% else %}{{ m.content }}{% endif %}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )

    def run(**changes):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = template
        # the tiny model cannot write <think>: what it says is read as if all of it had been thought
        tokenizer.response_schema = {"type": "object"}
        tokenizer.parse_response = lambda text: {"content": f"g{text}", "reasoning_content": "g"}
        return train(tokenizer=tokenizer, data=TALKS, steps=1, **changes)

    run(progress="plain")
    said = capsys.readouterr()
    assert "Refuse with: --rewritten-history refuse" in said.out + said.err
    with pytest.raises(SettingsError, match="leaves out of earlier turns what the model wrote there"):
        run(rewritten_history="refuse")


def test_episodes_are_played_while_the_trainer_trains(train, tmp_path):
    """A sampling process with its own weights: every prompt is issued once and trained, and no token is too old."""
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    run = train(model=str(folder), tokenizer=None, max_staleness=1, environment=Slow, steps=4)
    last = run.metrics[-1]
    assert (last["prompts_issued"], last["prompts_trained"], last["prompts_pending"]) == (8.0, 8.0, 0.0)
    assert max(line.get("sampler_staleness_max", 0.0) for line in run.metrics) <= 1.0
    assert run.metrics[0]["turns"] > 1


def test_chat_and_system_prompt_hold_for_the_whole_conversation(train):
    assert series(train(chat=True)) == series(train(data=TALKS))

    class Opens(Echo):
        def reset(self, row, seed):
            return "go"

    told = [{"prompt": [{"role": "system", "content": "gg"}, *row["prompt"]]} for row in TALKS]
    run = train(data=TALKS, system_prompt="gg", environment=Opens)
    assert series(run) == series(train(data=told, environment=Opens))

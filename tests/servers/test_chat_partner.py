"""A model behind a chat server that talks with the policy: a user, an opponent, several of them."""

import json

import pytest
import torch
from posttrain import api
from posttrain.assembly.environment import find_task
from posttrain.contract.generation import Sampling
from posttrain.errors import RunFailed, SettingsError
from posttrain.generation.local.hf import HfGenerator
from posttrain.settings import EpisodeSettings
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

ROW = {"prompt": [{"role": "system", "content": "Help."}, {"role": "user", "content": "Hello"}], "partner": "Be Ann."}


def says(text):
    return {"role": "assistant", "content": text}


def answer(text):
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}


def task(url, **options):
    return find_task(EpisodeSettings(environment=f"chat:{url}#m", environment_options=options))


def test_the_partner_sees_the_conversation_from_its_side(serve):
    replies = iter(["I want tea", "thanks [DONE]"])
    fake = serve(lambda path, payload: answer(next(replies)))
    game = task(fake.url, instructions="Play.", temperature="0.5", max_tokens="9").make()
    assert game.reset(ROW, 7) is None
    assert vars(game.step(says("What now?"))) == {"messages": "I want tea", "reward": None, "done": False}
    assert vars(game.step(says("Here"))) == {"messages": "thanks", "reward": 1.0, "done": True}
    first, second = fake.asked
    assert first["messages"] == [
        {"role": "system", "content": "Play.\n\nBe Ann."},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "What now?"},
    ]
    assert second["messages"][3:] == [says("I want tea"), {"role": "user", "content": "Here"}]
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("m", 0.5, 9)
    assert (first["seed"], second["seed"]) == (7, 8)


def test_the_words_that_end_it_and_who_begins(serve):
    replies = iter(["Hi", "no STOP"])
    fake = serve(lambda path, payload: answer(next(replies)))
    game = task(fake.url, done="", failed="STOP", begins="true").make()
    assert game.reset(ROW, 0) == "Hi"
    assert vars(game.step(says("x"))) == {"messages": "no", "reward": 0.0, "done": True}
    assert fake.asked[0]["messages"][-1] == {"role": "user", "content": "..."}  # nobody has answered "Hello" yet


def test_several_partners_answer_in_turn_and_hear_each_other(serve):
    replies = iter(["one", "two", "three", "four"])
    fake = serve(lambda path, payload: answer(next(replies)))
    game = task(fake.url, instructions="").make()
    game.reset(ROW | {"partner": ["Be Ann.", "Be Bob."]}, 0)
    assert game.step(says("x")).messages == "Person 1: one\nPerson 2: two"
    game.step(says("y"))
    assert fake.asked[3]["messages"] == [
        {"role": "system", "content": "Be Bob.\n\nYou are Person 2."},
        {"role": "user", "content": "Person 1: Hello\nx\nPerson 1: one"},
        says("two"),
        {"role": "user", "content": "y\nPerson 1: three"},
    ]


def test_what_a_server_does_not_take_is_left_out_and_errors_are_one_line(serve, nowhere):
    def picky(path, payload):
        for name in ("seed", "max_tokens"):
            if name in payload:
                hint = " Use max_completion_tokens" if name == "max_tokens" else ""
                return 400, {"error": {"message": f"unknown parameter {name}.{hint}"}}
        return answer("fine")

    fake = serve(picky)
    game = task(fake.url).make()
    game.reset(ROW, 0)
    assert game.step(says("x")).messages == "fine"
    assert "max_completion_tokens" in fake.asked[-1]
    lost = task(nowhere, retries="0").make()
    lost.reset(ROW, 0)
    with pytest.raises(RunFailed, match=r"The partner at http.* cannot be reached \(Connection refused"):
        lost.step(says("x"))
    two = serve(lambda path, payload: (200, {"data": [{"id": "a"}, {"id": "b"}]}))
    with pytest.raises(SettingsError, match=r"The partner at .* has 2 models \(a, b\)\. Name one: #MODEL"):
        find_task(EpisodeSettings(environment=f"chat:{two.url}"))
    refusing = serve(lambda path, payload: (403, {"error": "no"}))
    game = task(refusing.url).make()
    game.reset(ROW, 0)
    with pytest.raises(RunFailed, match="answers 403: no"):
        game.step(says("x"))
    with pytest.raises(SettingsError, match="has no option 'instruction'"):
        task(fake.url, instruction="x")


def test_a_policy_learns_in_talk_with_a_model_that_is_served(serve, tmp_path):
    """A tiny model behind a real server, sampled with the seed that it is sent: two runs are the same."""
    tokenizer, model = tiny_tokenizer(), tiny_model()
    generator = HfGenerator(model, tokenizer, {tokenizer.eos_token_id}, 1)

    def served(path, payload):
        said = "".join(one["content"] for one in payload["messages"] if one["role"] != "system")[-20:]
        ids = torch.tensor(tokenizer(said)["input_ids"])
        ((one,),) = generator.generate([ids], Sampling(payload["max_tokens"]), [[payload["seed"]]])
        return answer(one.text)

    fake = serve(served)

    def run(name):
        return api.train(
            "grpo",
            model=tiny_model(),
            tokenizer=tiny_tokenizer(),
            data=[{"prompt": [{"role": "user", "content": text}]} for text in ("ab", "abc")],
            environment=f"chat:{fake.url}#tiny",
            environment_options={"done": "a", "failed": "b", "max_tokens": "6"},
            tool_workers=1,
            steps=2,
            group_size=4,
            batch_size=2,
            max_new_tokens=8,
            max_turns=4,
            progress="quiet",
            cache="off",
            device="cpu",
            output=str(tmp_path / name),
        )

    first, second = run("first"), run("second")
    lines = [json.loads(line) for line in (first.path / "episodes.jsonl").read_text().splitlines()]
    assert {"done"} < {line["end"] for line in lines}
    assert {0.0, 1.0} == {line["reward"] for line in lines}
    assert [one["loss"] for one in first.metrics] == [one["loss"] for one in second.metrics]

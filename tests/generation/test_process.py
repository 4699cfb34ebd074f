"""The hf backend in a process of its own: weights between two tokens, pauses, and its death."""

import os
import signal
import threading
import time
from itertools import chain

import pytest
import torch
from posttrain.contract.generation import Sampling, Weights
from posttrain.errors import DataError, GeneratorLost, ModelError, RunFailed, SettingsError
from posttrain.generation.local.hf import HfGenerator
from posttrain.generation.local.process import ProcessGenerator
from posttrain.generation.local.worker import Start
from posttrain.settings import Settings
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

PROMPT = torch.tensor([5, 6, 7])
LONG = Sampling(55, greedy=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


def start(folder):
    settings = Settings(model=str(folder), device="cpu", max_length=64)
    return lambda _: Start(settings, tiny_tokenizer(), set(), threads=1, autocast=False)


@pytest.fixture(scope="module")
def generator(folder):
    one = ProcessGenerator(start(folder))
    yield one
    one.close()


def weights(version, scale):
    """All of the tiny model, its vocabulary projection times ``scale``."""
    tensors = {n: t.detach().clone() for n, t in tiny_model().named_parameters()}
    tensors["lm_head.weight"] *= scale
    return Weights(version, "full", lambda: iter(tensors.items()))


def test_weights_change_between_two_tokens_and_each_token_says_whose_it_is(generator):
    """Partial rollouts: with the projection negated, the likeliest token is the one that was the least likely."""
    generator.accept(weights(0, 1.0))
    found = []
    caller = threading.Thread(target=lambda: found.append(generator.generate([PROMPT], LONG, [[0]])))
    caller.start()
    while not generator.health().running and caller.is_alive():
        pass
    generator.pause()
    time.sleep(0.05)
    assert (generator.health().running, generator.health().version) == (1, 0)
    generator.accept(weights(1, -1.0))
    assert not found  # paused
    generator.resume()
    generator.drain()
    caller.join(30)
    ((completion,),) = found[0]
    versions = completion.versions.tolist()
    assert versions == sorted(versions)
    assert set(versions) == {0, 1}
    first = versions.index(1)
    whole = torch.cat([PROMPT, completion.ids[:first]])
    with torch.no_grad():
        old = tiny_model().eval()(input_ids=whole[None]).logits[0]  # (n, V)
    assert completion.ids[:first].tolist() == old[2:-1].argmax(-1).tolist()
    assert completion.ids[first] == old[-1].argmin()
    assert completion.logps[first] == pytest.approx(float((-old[-1]).log_softmax(-1).max()), abs=1e-5)


def test_it_answers_as_the_trainer_s_own_would_and_calls_share_its_batch(generator):
    generator.accept(weights(2, 1.0))
    prompts, seeds = [PROMPT, torch.tensor([8, 9])], [[1, 2], [3]]
    here = HfGenerator(tiny_model().eval(), tiny_tokenizer(), set(), 64).generate(prompts, Sampling(9), seeds)
    there = generator.generate(prompts, Sampling(9), seeds)
    for one, other in zip(chain(*here), chain(*there), strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        torch.testing.assert_close(other.logps, one.logps, rtol=0, atol=1e-6)
        assert one.text == other.text
        assert other.versions.tolist() == [2] * 9
        assert (other.finished, other.reason) == (False, "length")
    many = [[] for _ in range(6)]
    callers = [
        threading.Thread(target=lambda i=i: many[i].extend(generator.generate([PROMPT], Sampling(20 + i % 2), [[i]])))
        for i in range(6)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert [len(answer[0][0].ids) for answer in many] == [20, 21, 20, 21, 20, 21]


def test_mistakes_come_back_and_it_lives_on(generator):
    with pytest.raises(DataError, match="prompt 0 has no tokens"):
        generator.generate([torch.zeros(0, dtype=torch.long)], Sampling(2), [[0]])
    with pytest.raises(RunFailed, match=r"version 7 do not fit the generator's model: 'x' and 0 more"):
        generator.accept(Weights(7, "full", lambda: iter([("x", torch.zeros(2))])))
    with pytest.raises(SettingsError, match="Prompts have images"):
        generator.generate([PROMPT], Sampling(2), [[0]], [[object()]])
    assert generator.health().alive


def test_its_death_is_told_and_another_one_takes_its_place(generator):
    caller_heard = []

    def call():
        try:
            generator.generate([PROMPT], LONG, [[0] * 40])
        except GeneratorLost as error:
            caller_heard.append(str(error))

    generator.pause()  # so that the call is open when the process dies
    caller = threading.Thread(target=call)
    caller.start()
    os.kill(generator.health().facts["process"], signal.SIGKILL)
    caller.join(30)
    assert "was killed by signal 9" in caller_heard[0]
    dead = generator.health()
    assert (dead.alive, dead.version) == (False, -1)
    generator.revive()
    assert (generator.health().alive, generator.health().version) == (True, -1)
    assert generator.generate([PROMPT], Sampling(3), [[0]])[0][0].versions is None  # weights that nobody gave it


def test_what_keeps_it_from_starting_is_told(tmp_path):
    with pytest.raises(ModelError, match=r"has no config.json"):
        ProcessGenerator(start(tmp_path))


def test_calls_that_come_one_by_one_go_on_from_what_was_read(generator):
    """Turns as threads ask for them, of unlike limits, against a model that reads everything; weights change."""
    alone = HfGenerator(tiny_model(), tiny_tokenizer(), set(), 8)
    for version, scale in ((0, 1.0), (1, 1.5)):
        generator.accept(weights(version, scale))
        alone.accept(weights(version, scale))
        with torch.no_grad():
            alone.model.lm_head.weight.copy_(tiny_model().lm_head.weight * scale)
        texts = [PROMPT] * 3
        for turn in range(3):
            found = [None] * 3

            def ask(place, texts=texts, turn=turn, found=found):
                sampling = Sampling(4 + place, stop=("a", "b", "c"), continued=True)
                ((found[place],),) = generator.generate([texts[place]], sampling, [[7 * turn + place]])

            threads = [threading.Thread(target=ask, args=(place,)) for place in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for place, one in enumerate(found):
                sampling = Sampling(4 + place, stop=("a", "b", "c"))
                ((plain,),) = alone.generate([texts[place]], sampling, [[7 * turn + place]])
                assert one.ids.tolist() == plain.ids.tolist()
                torch.testing.assert_close(one.logps, plain.logps, atol=1e-5, rtol=0)
                texts[place] = torch.cat([texts[place], one.ids, torch.tensor([8, 9])])

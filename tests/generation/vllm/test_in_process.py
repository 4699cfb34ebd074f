"""vLLM in the trainer's process: the trainer's numbers, its weights, and its random state left alone."""

import random

import numpy
import pytest
import torch
from posttrain import Environment, Observation
from posttrain.contract.generation import Sampling
from posttrain.contract.rollout import Rollout
from posttrain.contract.views import Sequence
from posttrain.data.tokens.turns import Turns
from posttrain.errors import SettingsError
from posttrain.generation.local.hf import HfGenerator
from posttrain.rollouts.episodes import EpisodePlayer
from posttrain.settings import DataSettings, EpisodeSettings

STOPS = frozenset({256, 257, 65})


@pytest.fixture(scope="module")
def policy(kit):
    return kit.policy_of(kit.made(tied=True))


@pytest.fixture(scope="module")
def engine(kit, policy, tokenizer, run_limits):
    from posttrain.generation.vllm.engine import EngineOptions, VllmEngine

    before = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_num_threads()
    engine = VllmEngine(policy, tokenizer, run_limits(STOPS), EngineOptions(0.7, torch.float32, 16, 0.3))
    kit.give(engine, policy, 0)
    after = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_num_threads()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    yield engine
    engine.close()


def test_the_engine_has_every_tensor_tied_ones_too(kit, engine, policy):
    """R13."""
    assert kit.differing(engine, policy.model) == []


def test_greedy_answers_are_those_of_transformers(kit, engine, policy, tokenizer, prompts):
    sampling = Sampling(24, greedy=True)
    mine = engine.generate(prompts, sampling, [[0]] * len(prompts))
    with torch.no_grad():
        theirs = HfGenerator(policy.model, tokenizer, set(STOPS), 16).generate(prompts, sampling, [[0]] * len(prompts))
    for prompt, (one,), (other,) in zip(prompts, mine, theirs, strict=True):
        assert one.ids.tolist() == other.ids.tolist() == kit.greedy_of(policy.model, prompt, len(one.ids))
        assert (one.text, one.reason, one.finished) == (other.text, other.reason, other.finished)
        assert torch.allclose(one.logps, other.logps, atol=1e-4)
    assert {one.reason for (one,) in mine} <= {"stop", "length"}


def test_log_probs_are_the_trainers_at_the_runs_temperature(kit, engine, policy, prompts):
    """G4, G11: the tokens that came back, scored by transformers."""
    answers = engine.generate(prompts, Sampling(16, 0.7), [[3, 4, 5]] * len(prompts))
    for prompt, group in zip(prompts, answers, strict=True):
        for one in group:
            assert torch.allclose(one.logps, kit.logps_of(policy.model, prompt, one, 0.7), atol=1e-4)
            assert one.versions.tolist() == [0] * len(one.ids)


def test_top_p_at_this_temperature_is_refused(engine, prompts):
    """G5."""
    with pytest.raises(SettingsError, match="before top-p and top-k only at temperature 1"):
        engine.generate(prompts, Sampling(4, 0.7, top_p=0.5), [[1]] * len(prompts))


def test_a_seed_decides_whatever_else_is_asked_for(engine, prompts):
    """G7: other seeds, other answers."""
    sampling = Sampling(12, 0.7)
    together = engine.generate(prompts, sampling, [[1, 2, 3]] * len(prompts))
    alone = engine.generate(prompts[:1], sampling, [[2]])
    assert alone[0][0].ids.tolist() == together[0][1].ids.tolist()
    assert len({tuple(one.ids.tolist()) for one in together[0]}) == 3


def test_every_stop_token_ends_an_answer_and_stays(engine, prompts):
    """G12: 65 is the third of them. Enough answers that each is met."""
    answers = engine.generate(prompts, Sampling(100, 2.0), [list(range(40))] * len(prompts))
    ended = [one for group in answers for one in group if one.finished]
    assert {int(one.ids[-1]) for one in ended} == STOPS
    for group in answers:
        for one in group:
            assert not set(one.ids[:-1].tolist()) & STOPS
            assert one.reason == ("stop" if one.finished else "length")
            assert len(one.logps) == len(one.ids)


def test_stop_strings_end_an_answer_and_stay(engine, tokenizer, prompts):
    (plain,) = engine.generate(prompts[:1], Sampling(24, greedy=True), [[0]])[0]
    stop = tokenizer.decode(plain.ids[3:5])
    (one,) = engine.generate(prompts[:1], Sampling(24, greedy=True, stop=(stop,)), [[0]])[0]
    with torch.no_grad():
        assert one.finished
    assert one.ids.tolist() == plain.ids[: len(one.ids)].tolist()
    assert tokenizer.decode(one.ids).endswith(stop)
    assert len(one.ids) <= 5
    assert len(one.logps) == len(one.ids)


def test_new_weights_are_taken_whole(kit, engine, policy, prompts):
    """G14, R13: after every update the next answers are those of the new weights, stored prompts forgotten."""
    for version in (1, 2):
        old = engine.generate(prompts, Sampling(12, greedy=True), [[0]] * len(prompts))
        kit.changed(policy.model, version)
        assert kit.differing(engine, policy.model)
        kit.give(engine, policy, version)
        assert kit.differing(engine, policy.model) == []
        new = engine.generate(prompts, Sampling(12, greedy=True), [[0]] * len(prompts))
        for prompt, (one,) in zip(prompts, new, strict=True):
            assert one.ids.tolist() == kit.greedy_of(policy.model, prompt, len(one.ids))
            assert set(one.versions.tolist()) == {version}
        assert [one.ids.tolist() for (one,) in new] != [one.ids.tolist() for (one,) in old]
        assert engine.health().version == version


def test_frozen_layers_keep_their_weights(kit, engine, policy, prompts):
    """What is not sent stays, also beside fused layers that are sent in part."""
    for name, parameter in policy.model.named_parameters():
        parameter.requires_grad_("layers.1." in name and "k_proj" not in name)
    kit.changed(policy.model, 9)
    kit.give(engine, policy, 9)
    assert kit.differing(engine, policy.model) == []
    policy.model.requires_grad_(True)


def test_episodes_are_sampled_with_the_trainers_numbers_turn_by_turn(kit, engine, policy, tokenizer, prompts):
    """Every sampled token is trained, nothing else is, and its log-prob is transformers' of the whole episode."""

    class Echo(Environment):
        turns = 0

        def step(self, message):
            self.turns += 1
            return Observation(f" {self.turns} of 3. ", 1.0, done=self.turns == 3)

    settings = EpisodeSettings(max_turns=3)
    player = EpisodePlayer(Echo, Turns(tokenizer, DataSettings(), set(STOPS), None), settings, 128)
    rows = [{"prompt": tokenizer.decode(prompt)} for prompt in prompts]
    asked = [Sequence(prompt, torch.zeros(len(prompt), dtype=torch.bool)) for prompt in prompts]
    found = player.play(engine, asked, rows, Sampling(40, 0.7), [[1, 2, 3, 4]] * len(prompts))
    turns = []
    for prompt, group in zip(prompts, found, strict=True):
        for one in group:
            sequence = Rollout(0, prompt, one, {}).sequence()
            said = [
                one.ids[(one.episode.turn == turn) & one.episode.sampled] for turn in range(len(one.episode.rewards))
            ]
            assert sequence.ids[sequence.trained].tolist() == torch.cat(said).tolist()
            between = tokenizer.decode(one.ids[~one.episode.sampled])
            assert between == "".join(f" {turn + 1} of 3. " for turn in range(len(said) - 1))
            expected = kit.logps_of(policy.model, prompt, one, 0.7)  # of every token behind the prompt
            assert torch.allclose(one.sampled_logps, expected[one.episode.sampled], atol=1e-4, rtol=0)
            turns.append(len(said))
    assert max(turns) == 3

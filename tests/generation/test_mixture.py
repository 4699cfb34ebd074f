"""Sampling from two models at once, against their distributions taken one by one."""

import pytest
import torch
from posttrain.contract.generation import Sampling
from posttrain.distillation.teacher import ModelTeacher
from posttrain.errors import SettingsError
from posttrain.generation.local.hf import HfGenerator
from posttrain.generation.local.mixture import MixtureGenerator
from posttrain.network.find_head import find_head
from posttrain.network.token_model import TokenModel
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

PROMPTS = [torch.tensor([4, 5, 6]), torch.tensor([7]), torch.tensor([8, 9, 10, 11, 4])]
SEEDS = [[1, 2], [3], [4]]
STOP = {2}


@pytest.fixture(scope="module")
def models():
    ours, theirs = tiny_model(dtype=torch.float64), tiny_model(dtype=torch.float64, seed=77)
    return TokenModel(ours, find_head(ours)).eval(), ModelTeacher(theirs, None, False, 13)


def generate(models, share, sampling=None, batch_size=8):
    policy, other = models
    generator = MixtureGenerator(policy, other, share, tiny_tokenizer(), STOP, batch_size)
    return generator.generate(PROMPTS, sampling or Sampling(8, temperature=0.9), SEEDS)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_at_the_ends_it_is_one_of_the_two_models(models, share):
    policy, other = models
    alone = HfGenerator(other.model.model if share else policy.model, tiny_tokenizer(), STOP, 8)
    expected = alone.generate(PROMPTS, Sampling(8, temperature=0.9), SEEDS)
    for ours, theirs in zip(generate(models, share), expected, strict=True):
        for one, two in zip(ours, theirs, strict=True):
            assert one.ids.tolist() == two.ids.tolist()
            assert (one.finished, one.text) == (two.finished, two.text)
            torch.testing.assert_close(one.logps, two.logps, atol=1e-5, rtol=1e-5)


def test_log_probs_are_those_of_the_normalised_geometric_mixture(models):
    """Worked out token by token from both models' own logits, without a cache."""
    policy, other = models
    for prompt, group in zip(PROMPTS, generate(models, 0.3), strict=True):
        for completion in group:
            ids = torch.cat([prompt, completion.ids])[None]
            with torch.no_grad():
                ours, theirs = (m(input_ids=ids).logits[0].log_softmax(-1) for m in (policy.model, other.model.model))
            mixed = ((0.7 * ours + 0.3 * theirs) / 0.9).log_softmax(-1)[len(prompt) - 1 : -1]
            expected = mixed.gather(1, completion.ids[:, None])[:, 0]
            torch.testing.assert_close(completion.logps.double(), expected, atol=1e-5, rtol=1e-5)


def test_the_neighbours_do_not_matter(models):
    together, alone = generate(models, 0.5), generate(models, 0.5, batch_size=1)
    assert [[c.ids.tolist() for c in g] for g in together] == [[c.ids.tolist() for c in g] for g in alone]


def test_a_stop_string_ends_an_answer(models):
    plain = generate(models, 0.5)[0][0]
    stop = plain.text[1]
    found = generate(models, 0.5, Sampling(8, temperature=0.9, stop=(stop,)))[0][0]
    assert found.finished
    assert found.text == plain.text[: plain.text.index(stop) + 1]


def test_a_share_beyond_1_is_refused(models):
    with pytest.raises(SettingsError, match="between 0 and 1"):
        generate(models, 1.5)


def test_log_probs_are_those_of_the_arithmetic_mixture(models):
    """Worked out token by token: 0.7 of the policy's probability and 0.3 of the other's, both at temperature 0.9."""
    policy, other = models
    generator = MixtureGenerator(policy, other, 0.3, tiny_tokenizer(), STOP, 8, arithmetic=True)
    for prompt, group in zip(PROMPTS, generator.generate(PROMPTS, Sampling(8, temperature=0.9), SEEDS), strict=True):
        for completion in group:
            ids = torch.cat([prompt, completion.ids])[None]
            with torch.no_grad():
                ours, theirs = (
                    (m(input_ids=ids).logits[0] / 0.9).softmax(-1) for m in (policy.model, other.model.model)
                )
            mixed = (0.7 * ours + 0.3 * theirs).log()[len(prompt) - 1 : -1]
            expected = mixed.gather(1, completion.ids[:, None])[:, 0]
            torch.testing.assert_close(completion.logps.double(), expected, atol=1e-5, rtol=1e-5)

"""Sampling from two models at once behind pictures: either model's own numbers, and those of their mixture."""

import pytest
import torch
from posttrain.contract.generation import Sampling
from posttrain.contract.views import Sequence
from posttrain.data import prepare, read_rows
from posttrain.distillation.teacher import ModelTeacher
from posttrain.errors import ModelError
from posttrain.generation.local.hf import HfGenerator
from posttrain.generation.local.mixture import MixtureGenerator
from posttrain.models.load import load_policy, load_tokenizer
from posttrain.network.image_reader import reader_of
from posttrain.settings import Settings
from posttrain_testkit.tiny import tiny_model
from posttrain_testkit.tiny_vision import picture, shown, tiny_vision

ROWS = [
    {"prompt": [shown(1, "what")]},
    {"prompt": [shown(2, "what")]},  # another picture behind the same ids
    {"prompt": [{"role": "user", "content": "hello there"}]},
    {"prompt": [shown("see ", 1, " and ", 3, "ok")]},
]
SEEDS = [[1, 2], [1, 2], [3], [4]]
SAMPLING = Sampling(6, temperature=0.9)


@pytest.fixture
def loaded(vision):
    def call(family):
        settings = Settings(model=vision(family), dtype="float64")
        tokenizer = load_tokenizer(vision(family), settings.model)
        policy = load_policy(vision(family), tokenizer, settings.model).policy.eval()
        examples = prepare(read_rows(ROWS, ("prompt",), settings.data), tokenizer, settings.data, {2}, None)
        other = tiny_vision(family, torch.float64, seed=77)[0].eval()
        vocabulary = other.get_input_embeddings().weight.shape[0]
        teacher = ModelTeacher(other, None, False, vocabulary, reader=reader_of(tokenizer))
        return policy, teacher, tokenizer, [example.sequences["prompt"][0] for example in examples]

    return call


def mixed(policy, teacher, tokenizer, prompts, share, size=3, arithmetic=False):
    generator = MixtureGenerator(policy, teacher, share, tokenizer, {2}, size, arithmetic)
    ids, images = [prompt.ids for prompt in prompts], [list(prompt.images) for prompt in prompts]
    return generator.generate(ids, SAMPLING, SEEDS, images)


@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl", "gemma3", "paligemma"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_at_the_ends_it_is_one_of_the_two_models(loaded, family, share):
    policy, teacher, tokenizer, prompts = loaded(family)
    alone = HfGenerator(teacher.model.model if share else policy.model, tokenizer, {2}, 3)
    ids, images = [prompt.ids for prompt in prompts], [list(prompt.images) for prompt in prompts]
    expected = alone.generate(ids, SAMPLING, SEEDS, images)
    for ours, theirs in zip(mixed(policy, teacher, tokenizer, prompts, share), expected, strict=True):
        for one, two in zip(ours, theirs, strict=True):
            assert one.ids.tolist() == two.ids.tolist()
            torch.testing.assert_close(one.logps, two.logps, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl"])
@pytest.mark.parametrize("arithmetic", [False, True])
def test_log_probs_are_those_of_the_mixture_of_whole_texts(loaded, family, arithmetic):
    policy, teacher, tokenizer, prompts = loaded(family)
    found = mixed(policy, teacher, tokenizer, prompts, 0.3, arithmetic=arithmetic)
    for prompt, group in zip(prompts, found, strict=True):
        for completion in group:
            ids = torch.cat([prompt.ids, completion.ids])
            row = Sequence(ids, torch.arange(len(ids)) >= len(prompt), images=prompt.images)
            temperature = 0.9 if arithmetic else 1.0
            both = [model.logits([row], temperature)(slice(None)) for model in (policy, teacher.model)]
            ours, theirs = (logits.log_softmax(-1) for logits in both)  # (t, V)
            if arithmetic:
                expected = (0.7 * ours.exp() + 0.3 * theirs.exp()).log()
            else:
                expected = ((0.7 * ours + 0.3 * theirs) / 0.9).log_softmax(-1)
            expected = expected.gather(1, completion.ids[:, None])[:, 0]
            torch.testing.assert_close(completion.logps.double(), expected, atol=1e-5, rtol=1e-5)


def test_neighbours_do_not_matter_and_the_picture_does(loaded):
    policy, teacher, tokenizer, prompts = loaded("llava")
    together, alone = (mixed(policy, teacher, tokenizer, prompts, 0.5, size) for size in (8, 1))
    assert [[c.ids.tolist() for c in g] for g in together] == [[c.ids.tolist() for c in g] for g in alone]
    assert prompts[0].ids.tolist() == prompts[1].ids.tolist()
    assert not torch.equal(together[0][0].logps, together[1][0].logps)


def test_a_teacher_with_the_same_tokeniser_sees_the_pictures(loaded):
    """Its logits are those of its own model on the whole row; another picture gives others."""
    _, teacher, tokenizer, prompts = loaded("llava")
    prompt = prompts[0]
    row = Sequence(prompt.ids, torch.arange(len(prompt)) >= len(prompt) - 3, images=prompt.images)
    found = teacher.logits([row], 1.0)(slice(None))
    torch.testing.assert_close(found, teacher.model.logits([row], 1.0)(slice(None)))
    other = Sequence(row.ids, row.trained, images=(reader_of(tokenizer).read(picture(7))[0],))
    assert not torch.allclose(found, teacher.logits([other], 1.0)(slice(None)))


def test_a_partner_of_text_is_refused(loaded):
    policy, _, tokenizer, prompts = loaded("llava")
    plain = ModelTeacher(tiny_model(dtype=torch.float64), None, False, 60)
    with pytest.raises(ModelError, match="LlamaModel reads text alone, and a row has images"):
        mixed(policy, plain, tokenizer, prompts, 0.3)

"""The experts of a completion are those of a plain pass over its whole text, however it was sampled."""

import pytest
import torch
from posttrain.contract.generation import Sampling
from posttrain.contract.views import Sequence
from posttrain.generation.local import ways
from posttrain.generation.local.hf import HfGenerator
from posttrain.generation.local.speculation import Speculation
from posttrain.network.routing import find_routers
from posttrain.rollouts.turn_samplers import turn_sampler
from posttrain_testkit.tiny import tiny_tokenizer
from posttrain_testkit.tiny_experts import FAMILIES, tiny_experts

PROMPTS = [torch.tensor(ids) for ids in ([4, 9, 5], [7, 7, 12, 4, 6, 8, 10, 5, 11], [6])]
SEEDS = [[1, 2, 3], [4, 5], [6]]


def prompt_of(ids):
    return Sequence(ids, torch.zeros(len(ids), dtype=torch.bool))


def by_hand(model, text, family):
    """Experts ``(n, layers, 2)`` by the routers' own outputs in one pass over the text, without a cache."""
    found = []
    at = 0 if family == "granitemoe" else 2
    hooks = [
        module.register_forward_hook(lambda *given: found.append(given[2][at]))
        for name, module in model.named_modules()
        if name.endswith((".gate", ".router"))
    ]
    with torch.no_grad():
        model(input_ids=text[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack(found, 1)


def check(model, family, prompt, completion):
    text = torch.cat([prompt, completion.ids])
    found, wanted = completion.experts, by_hand(model, text, family)
    assert (found.dtype, found.shape) == (torch.int8, wanted.shape)
    assert torch.equal(found[:-1].sort(-1).values.long(), wanted[:-1].sort(-1).values)
    assert found[-1].eq(-1).all()


def generator_of(model, **options):
    return HfGenerator(
        model, tiny_tokenizer(), {2}, options.pop("batch_size", 4), routers=find_routers(model), **options
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_those_of_the_whole_text(family):
    model = tiny_experts(family, dtype=torch.float64).eval()
    guessed = {"speculation": Speculation("ngram", 4)}
    for options, limit in (({}, 12), ({"cache_tokens": 30}, 12), ({"batch_size": 1}, 5), ({}, 1), (guessed, 20)):
        found = generator_of(model, **options).generate(PROMPTS, Sampling(limit), SEEDS)
        for prompt, own in zip(PROMPTS, found, strict=True):
            for completion in own:
                check(model, family, prompt, completion)


def test_they_are_without_a_cache_too():
    model = tiny_experts(dtype=torch.float64).eval()
    for way in ((False, True), (False, False), (True, False)):
        ways._settled[model] = way
        found = generator_of(model).generate(PROMPTS, Sampling(6), SEEDS)
        for prompt, own in zip(PROMPTS, found, strict=True):
            for completion in own:
                check(model, "mixtral", prompt, completion)


@pytest.mark.parametrize("kept", [None, 0])
def test_turns_that_continue_a_text_have_those_of_all_of_it(kept):
    model = tiny_experts(dtype=torch.float64).eval()
    generator = generator_of(model, prefix_tokens=kept)
    generator.stop_ids = frozenset(range(3, 9))
    texts = dict(enumerate(PROMPTS))
    turns = 0
    with turn_sampler(generator, Sampling(8), 3, None) as sampler:
        sampler.ask([(place, prompt_of(text), place, 8) for place, text in texts.items()])
        while sampler.busy:
            for place, one in sampler.advance():
                check(model, "mixtral", texts[place], one)
                turns += 1
                if turns < 12:
                    texts[place] = torch.cat([texts[place], one.ids, torch.tensor([5, 10])])
                    sampler.ask([(place, prompt_of(texts[place]), 100 + turns, 8)])
    assert turns >= 12


def test_nothing_is_recorded_unasked():
    model = tiny_experts().eval()
    generator = HfGenerator(model, tiny_tokenizer(), {2}, 4)
    assert generator.generate(PROMPTS[:1], Sampling(3), [[0]])[0][0].experts is None

"""Turns that go on from what has been read: the same tokens as reading everything, and little is read."""

import copy
import random

import pytest
import torch
import transformers
from posttrain.contract.generation import Sampling, Weights
from posttrain.contract.views import Sequence
from posttrain.errors import SettingsError
from posttrain.generation.local.hf import HfGenerator
from posttrain.generation.local.prefixes import Prefix, Prefixes
from posttrain.rollouts.turn_samplers import turn_sampler

TURNS, LIMIT, EPISODES = 4, 12, 6
STOPS = set(range(0, 258, 6))
SIZES = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
#: Texts beyond 40 tokens take other rotary factors, for all of their tokens.
ROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 40, "factor": 6.4}
ROPE |= {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0]}
#: Family -> options, and the share of tokens that is still read at most where turns go on from what was read.
FAMILIES = {
    "Llama": (SIZES, 0.6),
    "Mistral": (SIZES | {"sliding_window": 5}, 0.6),
    "Gemma3": (SIZES | {"sliding_window": 6}, 0.6),
    "GptOss": (SIZES | {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 6}, 0.6),
    "LongRope": (SIZES | {"rope_parameters": ROPE}, 0.9),
    "Lfm2": (SIZES | {"full_attn_idxs": [1, 3]}, 1.0),
}


def plain(ids):
    return Sequence(ids, torch.zeros(len(ids), dtype=torch.bool))


def family(name):
    torch.manual_seed(1)
    options, share = FAMILIES[name]
    kind = "Llama" if name == "LongRope" else name
    config = getattr(transformers, f"{kind}{'Text' if kind == 'Gemma3' else ''}Config")(**options)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval(), share


def played(generator, temperature=1.0):
    """Episodes of several turns as they come: all tokens of each, which were sampled, and their log-probs."""
    dice = random.Random(3)
    source = torch.Generator().manual_seed(4)
    said = [
        [torch.randint(0, 256, (dice.randint(1, 9),), generator=source) for _ in range(TURNS)] for _ in range(EPISODES)
    ]
    texts = [torch.arange(5 + 4 * (e // 2)) + 7 for e in range(EPISODES)]  # two episodes to a prompt
    found = [([], []) for _ in range(EPISODES)]
    turn = [0] * EPISODES
    with turn_sampler(generator, Sampling(LIMIT, temperature=temperature), EPISODES, None) as sampler:
        sampler.ask([(e, plain(texts[e]), 100 + e, LIMIT) for e in range(EPISODES)])
        while sampler.busy:
            ready = []
            for e, one in sampler.advance():
                found[e][0].append(one.ids.tolist())
                found[e][1].append(one.logps)
                texts[e] = torch.cat([texts[e], one.ids])
                turn[e] += 1
                if one.finished and turn[e] < TURNS:
                    texts[e] = torch.cat([texts[e], said[e][turn[e]]])
                    ready.append((e, plain(texts[e]), 1000 * turn[e] + e, LIMIT))
            sampler.ask(ready)
    return found, texts


def counted(model):
    """The tokens that a model reads before it samples, padding included; they go on being counted."""
    total = [0]

    def count(_, args, kwargs):
        rows, new = kwargs["input_ids"].shape
        total[0] += rows * new if new > 1 else 0

    model.register_forward_pre_hook(count, with_kwargs=True)
    return total


@pytest.mark.parametrize("name", FAMILIES)
def test_turns_from_what_was_read_are_those_from_whole_texts(name, tokenizer):
    model, share = family(name)
    played(HfGenerator(model, tokenizer, STOPS, 4))  # it has been tried now how the model can be sampled from
    total = counted(model)
    plain, _ = played(HfGenerator(model, tokenizer, STOPS, 4, prefix_tokens=0))
    whole, total[0] = total[0], 0
    generator = HfGenerator(model, tokenizer, STOPS, 4)
    found, texts = played(generator)
    assert max(len(ids) for ids, _ in plain) == TURNS
    for (ids, logps), (own_ids, own_logps) in zip(plain, found, strict=True):
        assert ids == own_ids
        torch.testing.assert_close(torch.cat(logps), torch.cat(own_logps), atol=1e-5, rtol=0)
    assert total[0] <= share * whole
    assert len(generator.prefixes) == 0  # the session is over
    # and both are what the model says of the whole text in one pass, without any cache
    if name == "LongRope":
        return  # a text's last turn was sampled with other factors than its first
    for text, (_, logps) in zip(texts, found, strict=True):
        with torch.no_grad():
            every = model(input_ids=text[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        expected = every.gather(1, text[1:, None])[:, 0]
        for own in logps:
            assert (expected.unfold(0, len(own), 1) - own).abs().amax(1).min() < 1e-4


def test_the_oldest_texts_leave_where_the_budget_ends(tokenizer):
    model, _ = family("Llama")
    plain, _ = played(HfGenerator(model, tokenizer, STOPS, 4, prefix_tokens=0))
    total = counted(model)
    played(HfGenerator(model, tokenizer, STOPS, 4))
    all_kept, total[0] = total[0], 0
    generator = HfGenerator(model, tokenizer, STOPS, 4, prefix_tokens=40)
    most, keep = [], generator.prefixes.keep
    generator.prefixes.keep = lambda *kept: (keep(*kept), most.append(generator.prefixes.held))
    found, _ = played(generator)
    assert [ids for ids, _ in found] == [ids for ids, _ in plain]
    assert 20 < max(most) <= 40
    assert total[0] > all_kept


def test_least_recently_used():
    """Three texts of 4 tokens and room for 9: what was looked for last stays, and a continuation replaces its text."""
    kept = Prefixes(9)
    texts = [torch.arange(4) + n for n in range(3)]
    prefixes = [Prefix(4, [], [], ()) for _ in texts]
    for text, prefix in zip(texts[:2], prefixes[:2], strict=True):
        kept.keep(text, prefix)
    assert kept.find(torch.cat([texts[0], texts[1]])) is prefixes[0]
    kept.keep(texts[2], prefixes[2])
    assert [kept.find(torch.cat([text, text])) for text in texts] == [prefixes[0], None, prefixes[2]]
    assert kept.find(texts[0]) is None  # nothing would be left to read
    longer = Prefix(5, [], [], ())
    kept.keep(torch.cat([texts[0], texts[1][:1]]), longer, prefixes[0])
    assert kept.held == 9
    assert kept.find(torch.cat([texts[0], texts[1]])) is longer
    assert not kept.wants(torch.arange(10))


def test_new_weights_forget_what_the_old_ones_have_read(tokenizer, model):
    generator = HfGenerator(copy.deepcopy(model), tokenizer, STOPS, 4, own_weights=True)
    asked = Sampling(LIMIT, continued=True)
    (first,) = generator.generate([torch.arange(9)], asked, [list(range(4))])
    assert len(generator.prefixes) > 0
    weights = {name: value * 1.5 for name, value in model.named_parameters()}
    generator.accept(Weights(1, "full", lambda: iter(weights.items())))
    assert len(generator.prefixes) == 0
    done = next(one for one in first if one.finished)
    text = torch.cat([torch.arange(9), done.ids, torch.tensor([5])])
    (answers,) = generator.generate([text], asked, [[1]])
    with torch.no_grad():
        logits = generator.model(input_ids=torch.cat([text, answers[0].ids])[None]).logits[0, len(text) - 1 : -1]
    logps = logits.log_softmax(-1).gather(1, answers[0].ids[:, None])[:, 0]
    torch.testing.assert_close(answers[0].logps, logps, atol=1e-4, rtol=0)


def test_a_call_that_nothing_follows_keeps_nothing(tokenizer, model):
    generator = HfGenerator(model, tokenizer, STOPS, 4)
    generator.generate([torch.arange(9)], Sampling(LIMIT), [list(range(4))])
    assert len(generator.prefixes) == 0
    with pytest.raises(SettingsError, match=r"generation-prefix-tokens is -1\. It must be 0 or more"):
        HfGenerator(model, tokenizer, STOPS, 4, prefix_tokens=-1)

"""Speculative decoding: the same tokens, or the same distribution, in fewer passes."""

import copy
import math
import random
from collections import Counter

import peft
import pytest
import torch
import transformers
from posttrain.contract.generation import Sampling
from posttrain.contract.views import Sequence
from posttrain.errors import ModelError, SettingsError
from posttrain.generation.local import speculation as module
from posttrain.generation.local.hf import HfGenerator
from posttrain.generation.local.lookup import Index, Lookup
from posttrain.generation.local.prefill import Network
from posttrain.generation.local.sampling import accept, choose
from posttrain.generation.local.speculation import Speculation
from posttrain.settings import Settings
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {
    "vocab_size": 16,  # few, so that texts repeat themselves
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
#: Family -> its own options; windows are shorter than the texts.
FAMILIES = {
    "Llama": {},
    "Mistral": {"sliding_window": 5},
    "Gemma3": {"sliding_window": 6},  # windows and full attention in turn
    "GptOss": EXPERTS | {"sliding_window": 6},  # sinks
    "Qwen3Moe": EXPERTS | {"moe_intermediate_size": 16},
    "Phi3": {"sliding_window": None},
}
LIMITS = (19, 2, 24, 15, 31, 50)


def prompt_of(ids):
    return Sequence(ids, torch.zeros(len(ids), dtype=torch.bool))


def family(name, layers=4):
    torch.manual_seed(1)
    text = "Text" if name == "Gemma3" else ""
    config = getattr(transformers, f"{name}{text}Config")(**SIZES | FAMILIES[name] | {"num_hidden_layers": layers})
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def nearby(model):
    """A draft that often agrees with ``model``: its copy with noise on the weights."""
    draft, noise = copy.deepcopy(model), 0.4 if "Gemma" in type(model).__name__ else 0.05
    source = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for weight in draft.parameters():
            weight += noise * torch.randn(weight.shape, generator=source)
    return draft


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """Guess as much as the options allow, though nothing is gained by it with models of this size."""
    monkeypatch.setattr(module, "FREE_TOKENS", {"cpu": 1e9})
    monkeypatch.setattr(module, "_size", lambda network: 1e-9 if "draft" in vars(network) else 1.0)


class Limited(HfGenerator):
    """Each answer has a length of its own."""

    def limit(self, index, prompt, sampling):
        return min(super().limit(index, prompt, sampling), LIMITS[index])


@pytest.fixture
def ragged():
    """Prompts that repeat themselves, of unequal length."""
    source = torch.Generator().manual_seed(5)
    return [torch.randint(0, 16, (n,), generator=source).repeat(2) for n in (3, 11, 2, 7, 17, 5)]


def speculation(kind, model, tokens=4):
    if kind == "ngram":
        return Speculation("ngram", tokens)
    draft = Network(nearby(model))
    draft.draft = True
    return Speculation("draft", tokens, draft, "small")


def made(completions):
    return [[one.ids.tolist() for one in own] for own in completions]


@pytest.mark.parametrize("kind", ["ngram", "draft"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "Phi3"])
def test_greedy_answers_are_those_without(name, kind, tokenizer, ragged):
    """Windows, sinks, experts; rows that take back different numbers of tokens, leave and join."""
    model = family(name)
    seeds, sampling = [[0]] * 6, Sampling(50, greedy=True)
    plain = Limited(model, tokenizer, set(), 3).generate(ragged, sampling, seeds)
    how = speculation(kind, model)
    found = Limited(model, tokenizer, set(), 3, speculation=how).generate(ragged, sampling, seeds)
    assert made(found) == made(plain)
    for (one,), (other,) in zip(found, plain, strict=True):
        torch.testing.assert_close(one.logps, other.logps, atol=1e-4, rtol=0)
    assert how.tried > 20
    assert kind == "ngram" or how.right > 0
    assert name == "Gemma3" or how.right < how.tried


@pytest.mark.parametrize(("name", "kind"), [("Llama", "ngram"), ("Llama", "draft"), ("Gemma3", "draft")])
def test_log_probs_are_those_of_a_plain_pass_and_samples_do_not_depend_on_others(name, kind, tokenizer, ragged):
    """Alone with one guess a pass, or together with five in a cache so small that rows are preempted: the same."""
    model, sampling = family(name), Sampling(30, temperature=0.7, top_p=0.9)
    seeds = [[1, 2], [3], [4], [5, 6], [7], [8]]
    how = speculation(kind, model, 5)
    together = HfGenerator(model, tokenizer, {3}, 6, 150, speculation=how).generate(ragged, sampling, seeds)
    assert 0 < how.right < how.tried
    single = HfGenerator(model, tokenizer, {3}, 1, speculation=speculation(kind, model, 1))
    for prompt, own, answers in zip(ragged, seeds, together, strict=True):
        for seed, answer in zip(own, answers, strict=True):
            assert single.generate([prompt], sampling, [[seed]])[0][0].ids.tolist() == answer.ids.tolist()
            whole = torch.cat([prompt, answer.ids])[None]
            with torch.no_grad():
                logps = (model(whole).logits[0, len(prompt) - 1 : -1] / 0.7).log_softmax(-1)
            expected = logps.gather(-1, answer.ids[:, None])[:, 0]
            torch.testing.assert_close(answer.logps, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_looked_up_guesses_change_no_sample(name, tokenizer, ragged):
    """Also across completions of a prompt, stop tokens and stop strings within an accepted run, and limits."""
    model = family(name)
    sampling = Sampling(50, temperature=0.5, top_k=8, stop=(tokenizer.decode([4, 5]),))
    seeds = [[1, 2, 3], [3], [4], [5, 6], [7], [8]]
    plain = Limited(model, tokenizer, {3}, 4).generate(ragged, sampling, seeds)
    how = speculation("ngram", model)
    found = Limited(model, tokenizer, {3}, 4, speculation=how).generate(ragged, sampling, seeds)
    assert made(found) == made(plain)
    ends = [(one.finished, one.reason, one.text) for own in found for one in own]
    assert ends == [(one.finished, one.reason, one.text) for own in plain for one in own]
    assert len({finished for finished, _, _ in ends}) == 2
    assert 0 < how.right < how.tried


def enumerated(model, prompt, count, temperature=1.0, top_k=0, top_p=1.0):
    """Probability of every continuation of ``count`` tokens, in float64, token by token."""
    found, model = {(): 1.0}, copy.deepcopy(model).double()
    for _ in range(count):
        longer = {}
        for ids, chance in found.items():
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt.tolist(), *ids]])).logits[0, -1] / temperature
            order = sorted(range(len(logits)), key=lambda i: -float(logits[i]))
            kept = order[: top_k or None]
            shares = torch.softmax(logits[kept], 0).tolist()
            within, total = [], 0.0
            for token, share in zip(kept, shares, strict=True):
                if total < top_p:
                    within.append((token, share))
                total += share
            whole = sum(share for _, share in within)
            longer |= {(*ids, token): chance * share / whole for token, share in within}
        found = longer
    return found


def deviation(samples, chances):
    """Chi-square of samples in standard deviations; continuations expected less than five times count together."""
    counts, count = Counter(samples), len(samples)
    assert set(counts) <= set(chances)
    often = {ids for ids, chance in chances.items() if count * chance >= 5}
    cells = [(counts[ids], count * chances[ids]) for ids in often]
    rare = (sum(n for ids, n in counts.items() if ids not in often), count * (1 - sum(chances[i] for i in often)))
    cells += [rare] if rare[1] >= 5 else []
    free = len(cells) - 1
    return (sum((n - expected) ** 2 / expected for n, expected in cells) - free) / math.sqrt(2 * free)


SAMPLES = 4000


OPTIONS = ({}, {"temperature": 0.6}, {"top_k": 5}, {"top_p": 0.7, "temperature": 1.3})
BIASES = ("accept always", "draw again from p", "draft is uniform")


@pytest.mark.parametrize(("bias", "options"), [(None, one) for one in OPTIONS] + [(one, {}) for one in BIASES])
def test_the_distribution_is_that_of_the_model(bias, options, tokenizer, monkeypatch):
    """Against enumerated probabilities of all continuations; with a bias the test would fail."""
    torch.manual_seed(2)
    config = LlamaConfig(**SIZES | {"vocab_size": 8, "num_hidden_layers": 1, "initializer_range": 0.4})
    model = LlamaForCausalLM(config).eval()
    how = speculation("draft", model, 2)
    with torch.no_grad():
        how.draft.inner.lm_head.weight += 0.3 * torch.randn(8, 32)
    if bias:
        biased = {
            "accept always": lambda logits, sampling, proposed, chances, uniforms: (proposed, logits[:, 0]),
            "draw again from p": again_from_p,
            "draft is uniform": lambda *given: accept(*given[:3], given[3] * 0 + 1 / 8, given[4]),
        }
        monkeypatch.setattr(module, "accept", biased[bias])
    prompt, count = torch.tensor([1, 2, 3]), 3
    generator = HfGenerator(model, tokenizer, set(), 512, speculation=how)
    (answers,) = generator.generate([prompt], Sampling(count, **options), [list(range(SAMPLES))])
    assert 0.2 < how.right / how.tried < 0.95 or bias
    found = deviation([tuple(one.ids.tolist()) for one in answers], enumerated(model, prompt, count, **options))
    assert found > 30 if bias else found < 3


def again_from_p(logits, sampling, proposed, chances, uniforms):
    """The rule with its second half left out: what is rejected is drawn from p, not from the rest of it."""
    p = (logits.float() / sampling.logp_temperature).double().softmax(-1)
    stays = p.gather(-1, proposed[:, None]) > chances.gather(-1, proposed[:, None]) * torch.tensor(uniforms)[:, :1]
    others, logps = choose(logits, sampling, [second for _, second in uniforms])
    return torch.where(stays[:, 0], proposed, others), logps


def test_a_token_that_both_never_draw_never_comes():
    """p and q are points: the other's token is always replaced, its own always stays."""
    logits = torch.tensor([[0.0, 50.0, 0.0], [50.0, 0.0, 0.0]])
    chances = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    tokens, logps = accept(logits, Sampling(1), torch.tensor([1, 1]), chances, [(0.999, 0.5), (0.0001, 0.999)])
    assert tokens.tolist() == [1, 0]
    assert logps.abs().max() < 1e-6


def test_turns_go_on_from_what_was_read(tokenizer, ragged):
    """The prefix cache keeps rows in which tokens were taken back."""
    model, sampling = family("Llama"), Sampling(24, greedy=True, continued=True)
    found = {}
    for kind in ("off", "ngram", "draft"):
        generator = HfGenerator(
            model, tokenizer, {3, 7}, 4, speculation=None if kind == "off" else speculation(kind, model)
        )
        texts, found[kind] = list(ragged), []
        with generator.session(sampling) as session:
            for _ in range(3):
                session.ask([(row, prompt_of(text), row, 24) for row, text in enumerate(texts)])
                while session.busy:
                    for row, one in session.advance():
                        found[kind].append((row, one.ids.tolist()))
                        texts[row] = torch.cat([texts[row], one.ids, torch.tensor([1, 2])])
            assert len(generator.prefixes) > 0
        found[kind] = sorted(found[kind])
    assert found["ngram"] == found["off"] == found["draft"]


def test_rotary_factors_that_change_with_the_length(tokenizer, ragged):
    """Guesses that would cross the length at which all tokens get others are left out."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 8.0, "short_factor": [1.0] * 4}
    rope |= {"long_factor": [1.0, 2.0, 3.0, 4.0], "original_max_position_embeddings": 24}
    options = {"sliding_window": None, "rope_parameters": rope, "original_max_position_embeddings": 24}
    torch.manual_seed(3)
    model = transformers.Phi3ForCausalLM(transformers.Phi3Config(**SIZES | options)).eval()
    sampling, seeds = Sampling(40, temperature=0.5), [[1], [2], [3], [4]]
    prompts = [ragged[0], ragged[2], ragged[3], ragged[5]]
    how = speculation("ngram", model)
    found = HfGenerator(model, tokenizer, set(), 4, speculation=how).generate(prompts, sampling, seeds)
    assert made(found) == made(HfGenerator(model, tokenizer, set(), 4).generate(prompts, sampling, seeds))
    assert how.right


def test_a_draft_with_fewer_rows_in_its_vocabulary(tokenizer, ragged):
    """Sizes of one family pad their vocabularies differently."""
    model = family("Llama")
    for rows in (14, 20):
        how = speculation("draft", model)
        how.draft.inner.resize_token_embeddings(rows)
        generator, sampling = Limited(model, tokenizer, set(), 3, speculation=how), Sampling(20, greedy=True)
        plain = Limited(model, tokenizer, set(), 3).generate(ragged, sampling, [[0]] * 6)
        assert made(generator.generate(ragged, sampling, [[0]] * 6)) == made(plain)
        assert max(max(one.ids) for (one,) in generator.generate(ragged, Sampling(20), [[0]] * 6)) == 15


def test_an_adapter(tokenizer, ragged):
    torch.manual_seed(4)
    model = peft.get_peft_model(family("Llama"), peft.LoraConfig(target_modules=["q_proj", "down_proj"])).eval()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    sampling, how = Sampling(50, 0.5), speculation("ngram", model)
    plain = Limited(model, tokenizer, set(), 3).generate(ragged, sampling, [[0]] * 6)
    found = Limited(model, tokenizer, set(), 3, speculation=how).generate(ragged, sampling, [[0]] * 6)
    assert made(found) == made(plain)
    assert how.right


def test_how_much_is_read_follows_from_what_was_right(tokenizer, ragged, monkeypatch):
    """Where few tokens are free, poor guesses are not read, and good ones for a few rows are."""
    monkeypatch.setattr(module, "FREE_TOKENS", {"cpu": 8})
    model = family("Llama")
    with Network(model).sampling():
        speculator = module.Speculator(Speculation("ngram", 8), Network(model), Sampling(20))
        samples = [module.Sample(0, ragged[0], random.Random(0), 20, ids=[1]) for _ in range(8)]
        for share, rows, expected in ((0.02, 8, 0), (0.02, 1, 0), (0.5, 1, 2), (0.99, 8, 8), (0.99, 1, 8)):
            for sample in samples:
                sample.accepted = share
            assert speculator._worth(samples[:rows], [8] * rows) == expected


def test_a_state_that_cannot_go_back_is_refused(tokenizer, ragged):
    torch.manual_seed(1)
    options = {name: value for name, value in SIZES.items() if name != "head_dim"} | {"full_attn_idxs": [1, 3]}
    model = transformers.Lfm2ForCausalLM(transformers.Lfm2Config(**options)).eval()
    asked = ragged, Sampling(4), [[0]] * 6
    with pytest.raises(SettingsError, match="speculate is 'ngram', but Lfm2ForCausalLM cannot take back tokens"):
        HfGenerator(model, tokenizer, set(), 3, speculation=Speculation("ngram", 4)).generate(*asked)
    how = Speculation("draft", 4, Network(model), "small")
    with pytest.raises(ModelError, match="draft-model is 'small', but Lfm2ForCausalLM cannot take back"):
        HfGenerator(family("Llama"), tokenizer, set(), 3, speculation=how).generate(*asked)


def test_settings_that_contradict_each_other():
    for options, message in (
        ({"speculate": "draft"}, "A draft model needs both"),
        ({"draft_model": "x"}, "A draft model needs both"),
        ({"speculate": "ngram", "generation": "vllm"}, "only hf speculates"),
        ({"speculate": "ngram", "speculate_tokens": 0}, "speculate-tokens is 0"),
    ):
        with pytest.raises(SettingsError, match=message):
            Settings(**options).check()
    with pytest.raises(SettingsError, match="speculate-tokens is 65, expected a number from 1 to 64"):
        Speculation("ngram", 65)


def test_guesses_from_the_text():
    """What followed the longest run of last tokens at its latest place, in any text of the prompt's completions."""
    index = Index([1, 2, 3, 4, 1, 2])
    one, other = Lookup(index), Lookup(index)
    assert one.guess(3) == [3, 4, 1]
    assert one.guess(1) == [3]
    for token in (9, 9, 9):
        one.add(token)
    assert one.guess(3) == [9, 9, 9]  # a repetition goes on
    for token in (9, 9):
        other.add(token)
    assert other.guess(2) == [9]  # the other text has no more
    assert Lookup(Index([5])).guess(4) == []

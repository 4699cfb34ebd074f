import copy
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from posttrain.contract.generation import Sampling
from posttrain.errors import DataError, RunFailed, SettingsError
from posttrain.generation.local.hf import HfGenerator
from posttrain.generation.local.sample import Stops
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

EOS, END_OF_TURN = 256, 257


def generator(model, tokenizer, stop_ids=frozenset({EOS, END_OF_TURN}), batch_size=64):
    return HfGenerator(model, tokenizer, set(stop_ids), batch_size)


def flat(answers):
    return [[completion.ids.tolist() for completion in group] for group in answers]


def peaked(model, token):
    """A copy of ``model`` that gives ``token`` a much higher logit everywhere."""
    changed = copy.deepcopy(model)
    changed.lm_head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    torch.nn.init.zeros_(changed.lm_head.weight)
    torch.nn.init.zeros_(changed.lm_head.bias)
    changed.lm_head.bias.data[token] = 30.0
    return changed


def reference_greedy(model, prompt, count):
    """transformers' own greedy decoding of one prompt alone."""
    output = model.generate(
        prompt[None],
        attention_mask=torch.ones_like(prompt[None]),
        do_sample=False,
        max_new_tokens=count,
        eos_token_id=[EOS, END_OF_TURN],
        pad_token_id=EOS,
    )
    return output[0, prompt.numel() :].tolist()


def small(kind):
    torch.manual_seed(1)
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=258, n_positions=64, n_embd=16, n_layer=2, n_head=2)).eval()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=258, num_key_value_heads=1, sliding_window=5, initializer_range=0.5, **sizes)
    return MistralForCausalLM(config).eval()


def test_greedy_equals_transformers_token_by_token(model, tokenizer, prompts):
    """M14: prompts of unequal length in one batch, left-padded, positions counted without the padding."""
    answers = generator(model, tokenizer).generate(prompts, Sampling(20, greedy=True), [[0]] * len(prompts))
    for prompt, (completion,) in zip(prompts, answers, strict=True):
        assert completion.ids.tolist() == reference_greedy(model, prompt, 20)


@pytest.mark.parametrize("kind", ["gpt2", "mistral"])
def test_learnt_positions_and_sliding_windows_agree_with_transformers(kind, tokenizer, prompts):
    other = small(kind)
    answers = generator(other, tokenizer, batch_size=3).generate(prompts, Sampling(12, greedy=True), [[0]] * 4)
    for prompt, (completion,) in zip(prompts, answers, strict=True):
        assert completion.ids.tolist() == reference_greedy(other, prompt, 12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_log_probs_equal_a_plain_forward_pass(model, tokenizer, prompts, temperature):
    """G4: at the sampling temperature, for ragged prompts and after sequences have left the batch."""
    sampling = Sampling(25, temperature=temperature, top_p=0.9)
    answers = generator(model, tokenizer).generate(prompts, sampling, [[1, 2, 3]] * 4)
    for prompt, group in zip(prompts, answers, strict=True):
        for completion in group:
            whole = torch.cat([prompt, completion.ids])
            with torch.no_grad():
                logits = model(whole[None]).logits[0, prompt.numel() - 1 : -1]  # (t, V)
            expected = (logits / temperature).log_softmax(-1).gather(-1, completion.ids[:, None])[:, 0]
            torch.testing.assert_close(completion.logps, expected, atol=1e-5, rtol=1e-5)


def test_a_sequence_does_not_depend_on_its_batch_partners(model, tokenizer, prompts):
    """Same prompt and seed: alone, in a full batch, in waves of two, in another order of prompts."""
    sampling, stop_ids = Sampling(30), set(range(0, 258, 16))

    def complete(prompts, seeds, batch_size=64):
        return flat(generator(model, tokenizer, stop_ids, batch_size).generate(prompts, sampling, seeds))

    seeds = [[10 * row + column for column in range(3)] for row in range(4)]
    together = complete(prompts, seeds)
    alone = [[complete([prompt], [[seed]])[0][0] for seed in own] for prompt, own in zip(prompts, seeds, strict=True)]
    assert together == complete(prompts, seeds, batch_size=2) == alone == complete(prompts[::-1], seeds[::-1])[::-1]
    assert len({len(ids) for group in together for ids in group}) > 3  # some did leave the batch early


def test_seeds_decide_and_differ_in_every_bit(model, tokenizer, prompts):
    """G7: other seeds give other completions, also where they differ above the 32nd bit."""
    seeds = [[0, 1, 2, 2**32, 2**32 + 1, 2**80, 0]]
    (group,) = generator(model, tokenizer).generate(prompts[:1], Sampling(12), seeds)
    texts = [tuple(completion.ids.tolist()) for completion in group]
    assert texts[0] == texts[-1]
    assert len(set(texts)) == 6


def test_a_lower_limit_gives_the_beginning_of_the_same_completion(model, tokenizer, prompts):
    long = flat(generator(model, tokenizer).generate(prompts, Sampling(20), [[4]] * 4))
    short = flat(generator(model, tokenizer).generate(prompts, Sampling(6), [[4]] * 4))
    assert short == [[ids[:6] for ids in group] for group in long]


@pytest.mark.parametrize("stop_id", [EOS, END_OF_TURN])
def test_every_stop_token_ends_a_completion_and_stays_in_it(model, tokenizer, prompts, stop_id):
    """G12: the second end-of-sequence id counts as finished, not as cut off."""
    (group, *_) = generator(peaked(model, stop_id), tokenizer).generate(prompts, Sampling(5), [[1]] * 4)
    assert group[0].ids.tolist() == [stop_id]
    assert group[0].finished
    assert group[0].text == ""


def test_a_completion_at_the_limit_is_not_finished(model, tokenizer, prompts):
    answers = generator(peaked(model, 40), tokenizer).generate(prompts, Sampling(5), [[1]] * 4)
    assert all(group[0].ids.tolist() == [40] * 5 and not group[0].finished for group in answers)


def test_a_stop_token_in_the_last_place_finishes(model, tokenizer, prompts):
    answers = generator(peaked(model, EOS), tokenizer).generate(prompts, Sampling(1), [[1]] * 4)
    assert all(group[0].finished for group in answers)


def test_stop_strings_that_span_tokens_end_a_completion(model, tokenizer):
    """Every token is one byte, so 'é!' spans three tokens; the string stays in ids and text."""
    (free,) = generator(model, tokenizer, stop_ids=set()).generate([torch.tensor([1, 2])], Sampling(40), [[3]])
    wanted = tokenizer.decode(free[0].ids[10:13])
    (stopped,) = generator(model, tokenizer, stop_ids=set()).generate(
        [torch.tensor([1, 2])], Sampling(40, stop=("never seen", wanted)), [[3]]
    )
    assert stopped[0].finished
    assert wanted in stopped[0].text
    assert len(stopped[0].ids) <= 13
    assert stopped[0].ids.tolist() == free[0].ids[: len(stopped[0].ids)].tolist()
    assert wanted not in tokenizer.decode(stopped[0].ids[:-1])


def test_stop_string_over_a_multi_byte_character(tokenizer):
    ids = tokenizer("aé!b", add_special_tokens=False)["input_ids"]
    assert len(ids) == 5
    stops = Stops(frozenset(), ("é!",), tokenizer)
    assert [stops.reached(ids[:n]) for n in range(1, 6)] == [False, False, False, True, True]


def test_ids_are_kept_where_text_would_tokenise_otherwise(model, tokenizer, prompts):
    """G11: bytes that are no valid text cannot be recovered from the text; the ids must be those sampled."""
    answers = generator(model, tokenizer).generate(prompts, Sampling(20), [[1, 2]] * 4)
    completions = [completion for group in answers for completion in group]
    again = [tokenizer(completion.text, add_special_tokens=False)["input_ids"] for completion in completions]
    assert any(ids != completion.ids.tolist() for ids, completion in zip(again, completions, strict=True))
    assert all(completion.ids.shape == completion.logps.shape for completion in completions)
    assert all(
        completion.text == tokenizer.decode(completion.ids, skip_special_tokens=True) for completion in completions
    )


def test_prompt_is_computed_once_per_group(model, tokenizer, prompts, monkeypatch):
    seen = []
    forward = model.forward

    def counted(*args, **kwargs):
        seen.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    generator_ = generator(model, tokenizer, batch_size=16)
    monkeypatch.setattr(model, "forward", counted)
    generator_.generate(prompts, Sampling(3), [[1, 2, 3, 4]] * 4)
    assert seen[0] == (4, 11)
    assert all(shape[1] == 1 and shape[0] <= 16 for shape in seen[1:])


def test_finished_sequences_leave_the_batch_and_waves_respect_the_limit(model, tokenizer, prompts, monkeypatch):
    sizes = []
    forward = model.forward

    def counted(*args, **kwargs):
        sizes.append(kwargs["input_ids"].size(0))
        return forward(*args, **kwargs)

    half_stop = set(range(0, 258, 2))
    generator_ = generator(model, tokenizer, stop_ids=half_stop, batch_size=5)
    monkeypatch.setattr(model, "forward", counted)
    answers = generator_.generate(prompts, Sampling(30), [[1, 2, 3]] * 4)
    assert max(sizes) <= 5
    tokens = sum(len(completion.ids) for group in answers for completion in group)
    # Each forward row beyond the 4 prompts makes one token; the first token of a sample needs none of its own.
    assert sum(sizes) - len(prompts) <= 1.2 * (tokens - 12)


def test_groups_larger_than_the_batch_are_completed(model, tokenizer, prompts):
    seeds = [list(range(7))] * 2
    small_batches = flat(generator(model, tokenizer, batch_size=3).generate(prompts[:2], Sampling(8), seeds))
    assert small_batches == flat(generator(model, tokenizer).generate(prompts[:2], Sampling(8), seeds))


def test_training_state_is_untouched(model, tokenizer, prompts):
    """D3, R3: no random state moves, every module keeps its own mode, dropout and checkpointing are off meanwhile."""
    own = copy.deepcopy(model)
    own.config.attention_dropout = 0.5
    for module in own.modules():
        if "attention_dropout" in vars(module):
            module.attention_dropout = 0.5
    own.gradient_checkpointing_enable()
    own.config.use_cache = False
    own.train()
    own.model.norm.eval()
    modes = [module.training for module in own.modules()]
    torch.manual_seed(11)
    before = torch.get_rng_state()
    answers = flat(generator(own, tokenizer).generate(prompts, Sampling(10), [[1, 2]] * 4))
    assert torch.equal(before, torch.get_rng_state())
    assert [module.training for module in own.modules()] == modes
    assert own.config.use_cache is False
    assert answers == flat(generator(model, tokenizer).generate(prompts, Sampling(10), [[1, 2]] * 4))


def test_mode_is_restored_after_a_failure(model, tokenizer, prompts):
    own = copy.deepcopy(model).train()
    own.lm_head.weight.data.fill_(math.nan)
    with pytest.raises(RunFailed) as caught:
        generator(own, tokenizer).generate(prompts, Sampling(10), [[1]] * 4)
    assert str(caught.value) == (
        "The model gives token 0 of an answer to prompt 2 the log-probability nan: its weights are broken. "
        "Lower --learning-rate and go on from an earlier checkpoint."
    )
    assert own.training


def test_log_probs_may_enter_a_loss(model, tokenizer, prompts):
    """Tensors made in inference mode could not be saved for a backward pass."""
    (group, *_) = generator(model, tokenizer).generate(prompts, Sampling(6), [[1]] * 4)
    weight = torch.ones(len(group[0].logps), requires_grad=True)
    (weight * group[0].logps).exp().sum().backward()
    assert weight.grad.isfinite().all()


def test_what_the_model_keeps_may_take_part_in_training(model, tokenizer, prompts):
    """A buffer cached while generating (rotary tables, gathered weights) must be usable in a later backward pass."""
    own = copy.deepcopy(model)
    kept = []
    hook = own.lm_head.register_forward_hook(lambda module, inputs, output: kept.append(output))
    generator(own, tokenizer).generate(prompts, Sampling(2), [[1]] * 4)
    hook.remove()
    weight = torch.ones((), requires_grad=True)
    (weight * kept[-1]).mean().backward()
    assert weight.grad.isfinite()


def test_adapters_take_part(model, tokenizer, prompts):
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    sampling = Sampling(15, greedy=True)
    unchanged = flat(generator(adapted, tokenizer).generate(prompts, sampling, [[0]] * 4))
    assert unchanged == flat(generator(model, tokenizer).generate(prompts, sampling, [[0]] * 4))
    torch.manual_seed(2)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    answers = generator(adapted, tokenizer).generate(prompts, sampling, [[0]] * 4)
    merged = adapted.merge_and_unload()
    for prompt, (completion,) in zip(prompts, answers, strict=True):
        assert completion.ids.tolist() == reference_greedy(merged, prompt, 15)
    assert flat(answers) != unchanged


def test_completions_end_at_the_last_position_of_the_model(tokenizer):
    gpt2 = small("gpt2")
    prompts = [torch.arange(61), torch.arange(3)]
    answers = generator(gpt2, tokenizer, stop_ids=set()).generate(prompts, Sampling(10), [[1], [1]])
    assert [len(group[0].ids) for group in answers] == [3, 10]
    assert not answers[0][0].finished


def test_prompts_without_room_are_one_line_errors(model, tokenizer):
    backend = generator(model, tokenizer)
    with pytest.raises(DataError) as caught:
        backend.generate([torch.zeros(128, dtype=torch.long)], Sampling(4), [[0]])
    assert str(caught.value) == (
        "prompt 0 has 128 tokens and the model 128 positions, which leaves none for an answer. "
        "Shorten the prompts with --max-length."
    )
    with pytest.raises(DataError, match="prompt 0 has no tokens"):
        backend.generate([torch.zeros(0, dtype=torch.long)], Sampling(4), [[0]])
    with pytest.raises(SettingsError) as refused:
        generator(model, tokenizer, batch_size=0)
    assert str(refused.value) == "generation-batch-size is 0. It must be 1 or more."


def test_nothing_to_do_is_fine(model, tokenizer, prompts):
    assert generator(model, tokenizer).generate([], Sampling(4), []) == []
    assert generator(model, tokenizer).generate(prompts[:1], Sampling(4), [[]]) == [[]]

"""Sampling goes on from a cache only where that gives what whole texts give; else it reads them anew, or refuses."""

import copy

import pytest
import torch
from posttrain.contract.generation import Sampling
from posttrain.errors import ModelError
from posttrain.generation.local.hf import HfGenerator
from posttrain.generation.local.prefill import Network
from posttrain.generation.local.ways import settle
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

SMALL = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + place for place in range(8)],
    "original_max_position_embeddings": 16,
    "factor": 8.0,
}
SCALED = {
    "longrope": ("phi3", {"sliding_window": None, "rope_parameters": LONG, "original_max_position_embeddings": 16}),
    "dynamic": (
        "llama",
        {"max_position_embeddings": 16, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
    ),
}
OTHERS = {
    "mamba": {"state_size": 4, "time_step_rank": 4},
    "bart": {"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 48},
    "llama": {},
}


def make(family, changes):
    torch.manual_seed(3)
    config = AutoConfig.for_model(family, **SMALL | changes)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def check_sampled(model, tokenizer, prompts, count=8):
    """Log-probs of answers, some of which end early, are those of the whole texts, each read by a fresh copy."""
    generator = HfGenerator(model, tokenizer, set(range(0, 258, 7)), 3)
    answers = generator.generate(prompts, Sampling(count), [[1, 2], [3], [4, 5]])
    assert max([len(one.ids) for own in answers for one in own]) == count
    for prompt, own in zip(prompts, answers, strict=True):
        for one in own:
            text = torch.cat([prompt, one.ids])
            for end in range(len(one.ids)):  # as a text of that length
                with torch.no_grad():
                    logits = copy.deepcopy(model)(input_ids=text[None, : len(prompt) + end], use_cache=False).logits
                expected = logits[0, -1].log_softmax(-1)[one.ids[end]]
                torch.testing.assert_close(one.logps[end], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("form", SCALED)
def test_texts_that_outgrow_the_original_context_are_read_anew(form, tokenizer, prompts):
    """Of 11 + 8 tokens: all tokens take other rotary factors than while the text was shorter."""
    check_sampled(make(*SCALED[form]), tokenizer, prompts[:3])


@pytest.mark.parametrize(
    ("family", "line"),
    [
        ("llama", ""),
        ("bart", ""),
        (
            "mamba",
            "note: MambaForCausalLM does not go on exactly from what it has cached, so sampling reads each text anew "
            "for every token, which is slow.\n",
        ),
    ],
)
def test_a_family_is_sampled_from_exactly_and_a_slow_way_is_said_once(family, line, tokenizer, prompts, capsys):
    model = make(family, OTHERS[family])
    for _ in range(2):
        check_sampled(model, tokenizer, prompts[:3])
    assert capsys.readouterr().err == line


def test_a_cache_that_forgets_the_window_is_found_within_it(capsys):
    """Moshi's, with a window of 40 tokens, which no text here reaches: the check tries it with 4."""
    model = make("moshi", {"sliding_window": 40, "ffn_dim": 48, "head_dim": 16})
    network = Network(model)
    with network.sampling():
        settle(network)
    assert not network.caches
    assert model.config.sliding_window == 40
    assert capsys.readouterr().err.startswith("note: MoshiForCausalLM does not go on exactly")


def test_rows_that_depend_on_their_neighbours_are_refused_with_one_line(tokenizer, prompts):
    model = make("llama", {})

    class Mixing(LlamaForCausalLM):
        """Adds what the other rows are like."""

        def forward(self, **options):
            output = super().forward(**options)
            output.logits = output.logits + output.logits.mean(0, keepdim=True) * (len(output.logits) > 1)
            return output

    model.__class__ = Mixing
    with pytest.raises(ModelError) as refused:
        HfGenerator(model, tokenizer, set(), 3).generate(prompts, Sampling(4), [[1, 2]] * 4)
    assert str(refused.value).startswith(
        "Mixing cannot be sampled from: a text that grows, next to others, gets other logits than alone (logits are "
        "off by "
    )
    assert str(refused.value).endswith(" of their size). Train this one with an offline method.")

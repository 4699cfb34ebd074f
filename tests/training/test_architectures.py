"""Log-probs of every kind of attention equal plain transformers', each row alone; or the model is refused."""

import copy

import pytest
import torch
from posttrain.contract.generation import Sampling
from posttrain.contract.views import Sequence
from posttrain.errors import ModelError
from posttrain.generation.local.hf import HfGenerator
from posttrain.models.probe import check_training, choose_layout, use_attention
from posttrain.models.shrunk import shrunk
from posttrain.network import attention
from posttrain.network.chunked_head import TokenQuery
from posttrain.network.find_head import find_head
from posttrain.network.token_model import TokenModel
from posttrain_testkit.row_by_row import row_by_row
from posttrain_testkit.tiny import tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import causal_mask_function

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 61,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED = {"layer_types": ["sliding_attention", "full_attention"]}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + place for place in range(8)],
    "original_max_position_embeddings": 16,
    "factor": 8.0,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}
ELECTRA = {"is_decoder": True, "head_dim": ..., "embedding_size": 32}
#: Name -> (family, changes, laid out packed)
FORMS = {
    "llama": ("llama", {}, True),
    "mistral": ("mistral", {"sliding_window": 6}, True),
    "qwen2, whose masks alone know the window": (
        "qwen2",
        {"sliding_window": 6, "use_sliding_window": True, **MIXED},
        True,
    ),
    "gemma3": ("gemma3_text", {"sliding_window": 6, "query_pre_attn_scalar": 16, **MIXED}, True),
    "gemma2 with a low cap": (
        "gemma2",
        {"sliding_window": 6, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 16},
        True,
    ),
    "llama4, chunks": (
        "llama4_text",
        {"attention_chunk_size": 6, "intermediate_size_mlp": 48, "num_local_experts": 2, "no_rope_layers": [1, 0]},
        True,
    ),
    "longrope": (
        "phi3",
        {"sliding_window": None, "rope_parameters": LONG, "original_max_position_embeddings": 16},
        True,
    ),
    "dynamic rope": ("llama", {"max_position_embeddings": 16, "rope_parameters": DYNAMIC}, True),
    "falcon with ALiBi": ("falcon", {"alibi": True, "attention_dropout": 0.0, "head_dim": ...}, False),
    "opt, which counts positions": ("opt", OPT, True),
    "bert, whose head has layers around the projection": ("bert", {"is_decoder": True, "head_dim": ...}, True),
    "electra, whose head has layers beside it": ("electra", ELECTRA, True),
}


def make(family: str, changes: dict, dtype: torch.dtype = torch.float64):
    """The model as transformers has it, with its own attention."""
    torch.manual_seed(3)
    fields = SMALL | changes
    config = AutoConfig.for_model(family, **{name: value for name, value in fields.items() if value is not ...})
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype).eval()


def laid(model) -> tuple[TokenModel, list[str]]:
    """A copy of ``model`` as a run has it."""
    attention.register()
    own = copy.deepcopy(model)
    if own._can_set_attn_implementation():
        own.set_attn_implementation(attention.NAME)
    else:
        use_attention(own, "sdpa")
    policy = TokenModel(own, find_head(own))
    return policy, choose_layout(policy)


def sequences() -> list[Sequence]:
    """Unlike lengths, up to four windows and beyond the context; three share a prompt, and one branches from it."""
    torch.manual_seed(5)
    prompt = torch.randint(3, 61, (18,))
    beside = torch.cat([prompt[:16], torch.randint(3, 61, (3,))])
    found = []
    for start, count in ((prompt, 4), (prompt[:5], 6), (prompt, 9), (beside, 2), (prompt, 1), (prompt[:3], 13)):
        ids = torch.cat([start, torch.randint(3, 61, (count,))])
        found.append(Sequence(ids, torch.arange(len(ids)) >= len(start)))
    return found


@pytest.mark.parametrize("form", FORMS)
def test_rows_together_equal_plain_rows_alone(form):
    """Values and gradients; transformers computes softmaxes in float32, so its own code is exact to 1e-6."""
    family, changes, packed = FORMS[form]
    model = make(family, changes)
    policy, notes = laid(model)
    assert policy.packed is packed
    assert bool(notes) is not packed
    rows = sequences()
    wanted, gradients = row_by_row(model, rows)
    largest = max(float(torch.as_tensor(one).abs().max()) for one in gradients.values())
    for cut in (len(rows), 1, 4):  # micro-batches: what a row comes to does not depend on its neighbours
        policy.zero_grad()
        passes = [rows[start : start + cut] for start in range(0, len(rows), cut)]
        found = torch.cat([policy(part, TokenQuery(4))["logps"] for part in passes])
        torch.testing.assert_close(found, wanted, rtol=0, atol=5e-6)
        found.square().sum().backward()
        for name, weight in policy.inner.named_parameters():
            got = torch.zeros_like(weight) if weight.grad is None else weight.grad
            assert float((got - gradients[name]).abs().max()) <= 1e-5 * largest, name


@pytest.mark.parametrize(
    "form", ["mistral", "qwen2, whose masks alone know the window", "gemma2 with a low cap", "longrope"]
)
def test_rows_together_equal_rows_alone_to_the_last_digits(form):
    """Against the same kernel, which computes all in float64: windows, caps and factors are exact, not nearly so."""
    family, changes, _ = FORMS[form]
    policy, _ = laid(make(family, changes))
    rows = sequences()
    together = policy(rows, TokenQuery(4))["logps"]
    policy.packed = policy.shared = False
    one_by_one = torch.cat([policy([row], TokenQuery(4))["logps"] for row in rows])
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=1e-9)


@pytest.mark.parametrize("form", ["mistral", "gemma2 with a low cap", "falcon with ALiBi"])
def test_sampled_log_probs_are_those_of_the_trainer(form):
    """The first ratio of grpo is 1 within 1e-4, for answers that outgrow the window."""
    family, changes, _ = FORMS[form]
    policy, _ = laid(make(family, changes, torch.float32))
    prompts = [row.ids[:n] for row, n in zip(sequences(), (4, 2, 7), strict=False)]
    answers = HfGenerator(policy.model, tiny_tokenizer(), set(), 4).generate(prompts, Sampling(10), [[1], [2], [3, 4]])
    pairs = [(prompt, one) for prompt, own in zip(prompts, answers, strict=True) for one in own]
    rows = [Sequence(torch.cat([p, a.ids]), torch.arange(len(p) + len(a.ids)) >= len(p)) for p, a in pairs]
    with torch.no_grad():
        found = policy(rows, TokenQuery(4))["logps"]
    sampled = torch.cat([one.logps for _, one in pairs])
    torch.testing.assert_close((found - sampled).exp(), torch.ones_like(sampled), rtol=0, atol=1e-4)


def test_texts_of_unlike_length_are_sampled_as_alone_where_positions_are_counted_by_columns():
    model = make("bart", {"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 48})
    prompts = [row.ids[:n] for row, n in zip(sequences(), (4, 2, 7), strict=False)]
    generator = HfGenerator(model, tiny_tokenizer(), set(), 4)
    together = generator.generate(prompts, Sampling(5, greedy=True), [[1]] * 3)
    for prompt, (found,) in zip(prompts, together, strict=True):
        [[single]] = generator.generate([prompt], Sampling(5, greedy=True), [[1]])
        assert found.ids.tolist() == single.ids.tolist()
        torch.testing.assert_close(found.logps, single.logps, rtol=0, atol=1e-5)


def test_a_model_that_sees_what_comes_after_is_refused():
    model = make("bert", {"is_decoder": False})
    policy = TokenModel(model, find_head(model))
    with pytest.raises(ModelError) as refused:
        choose_layout(policy)
    assert str(refused.value) == (
        "BertLMHeadModel lets tokens see what comes after them, so it has no log-probs of a next token. Expected a "
        "causal language model; set is_decoder in its config.json if it has that field."
    )


def test_rows_that_a_family_cannot_be_trained_on_are_one_line():
    """Reformer's code reads any row in evaluation mode, and whole chunks in training mode."""
    model = make("reformer", {"axial_pos_embds": False, "is_decoder": True, "feed_forward_size": 48})
    policy = TokenModel(model, find_head(model))
    with pytest.raises(ModelError) as refused:
        check_training(policy)
    assert str(refused.value) == (
        "ReformerModelWithLMHead cannot be trained on rows as they are (its own code: If training, sequence length 67 "
        "has to be a multiple of least common multiple chunk_length 64. Please consider padding the input to a length "
        "of 128.). Choose another model, or another --dtype if that is what it asks for."
    )


def test_what_the_familys_own_code_cannot_read_is_one_line(monkeypatch):
    """A fault injected: operands of two types, as XLNet's in float64."""
    model = make("llama", {})

    def fail(*args, **options):
        raise RuntimeError("expected scalar type Float but found Double\nand more")

    monkeypatch.setattr(model.model.norm, "forward", fail)
    policy = TokenModel(model, find_head(model))
    with pytest.raises(ModelError) as refused:
        choose_layout(policy)
    assert str(refused.value) == (
        "LlamaForCausalLM cannot read a row of 9 tokens (its own code: expected scalar type Float but found Double). "
        "Choose another model, or another --dtype if that is what it asks for."
    )


def test_wide_hidden_states_meet_a_head_in_bfloat16():
    """Mamba keeps its residual in float32 until the head."""
    model = make("mamba", {"state_size": 4, "time_step_rank": 4, "head_dim": ...}, torch.bfloat16)
    policy = TokenModel(model, find_head(model))
    rows = sequences()
    states, _ = policy.hidden(rows[:1])
    assert states.dtype == torch.bfloat16
    found = policy(rows[:1], TokenQuery(4))["logps"]
    found.sum().backward()
    wanted, _ = row_by_row(model, rows[:1])
    torch.testing.assert_close(found.detach(), wanted.to(found.dtype), rtol=0, atol=2e-2)


def test_attention_that_was_asked_for_and_differs_is_said():
    attention.register()
    model = make("gemma2", FORMS["gemma2 with a low cap"][1])
    model.set_attn_implementation("sdpa")
    policy = TokenModel(model, find_head(model))
    notes = choose_layout(policy)
    assert notes[0] == "Gemma2ForCausalLM: attention is 'eager', the model's own; kernels give other numbers."
    assert model.config._attn_implementation == "eager"


def test_a_kernel_that_ignores_windows_is_found_when_the_model_is_loaded(monkeypatch):
    """The check's own fault injected: masks are plainly causal, whatever the model asks for."""
    family, changes, _ = FORMS["qwen2, whose masks alone know the window"]
    plain = attention.Sight

    def blind(segments, rule, reach):
        return plain(segments, causal_mask_function, None)

    monkeypatch.setattr(attention, "Sight", blind)
    policy, notes = laid(make(family, changes | {"sliding_window": 64}))  # beyond all rows of the check
    assert not policy.packed
    assert notes == ["Qwen2ForCausalLM cannot keep packed rows apart here; rows are padded instead."]


def test_windows_are_as_before_after_the_check():
    model = make("mistral", {"sliding_window": 64})
    with shrunk(model):
        assert model.config.sliding_window == 4
        assert model.model.layers[0].self_attn.config.sliding_window == 4
    assert model.config.sliding_window == 64

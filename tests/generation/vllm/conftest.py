"""The real engine: ``make test-vllm``. One at a time, and as few as possible: each takes ten seconds to a minute."""

import functools

import pytest
import torch
from posttrain.generation.weights import weights_for
from posttrain.network.find_head import find_head
from posttrain.network.token_model import TokenModel
from transformers import LlamaConfig, LlamaForCausalLM


def pytest_collection_modifyitems(items):
    for item in items:
        if __file__.removesuffix("conftest.py") in str(item.path):
            item.add_marker(pytest.mark.vllm)


def made(tied=True):
    """A model whose heads have a size that vLLM's attention on a CPU knows."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.15,
        tie_word_embeddings=tied,
        eos_token_id=256,
        pad_token_id=256,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def policy_of(model):
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    return TokenModel(model, find_head(inner))


def give(generator, policy, version):
    """The weights as the core gives them: the least that the generator takes."""
    generator.accept(weights_for(policy.model, generator.abilities, version, generator.health().version))


def changed(model, seed, size=0.2):
    """Move every trained weight."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                step = torch.randn(parameter.shape, generator=source) * size
                parameter.add_(step * parameter.abs().mean().clamp_min(0.01))


def logps_of(model, prompt, completion, temperature=1.0):
    """Log-probs ``(t,)`` of a completion's tokens by transformers alone."""
    with torch.no_grad():
        logits = model(input_ids=torch.cat([prompt, completion.ids])[None]).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(-1, completion.ids[:, None])[:, 0]


def greedy_of(model, prompt, length):
    """The likeliest tokens, one forward pass each, by transformers alone."""
    ids = prompt
    with torch.no_grad():
        for _ in range(length):
            ids = torch.cat([ids, model(input_ids=ids[None]).logits[0, -1:].argmax(-1)])
    return ids[len(prompt) :].tolist()


def engine_weights(worker):
    """By checkpoint names, the numbers with which vLLM's layers compute: what they make of the identity.

    Weights on a CPU are packed for its kernels, so their bytes say nothing.
    """
    model = worker.model_runner.model

    def of(layer):
        layer = getattr(layer, "base_layer", layer)
        width = getattr(layer, "input_size", None) or layer.embedding_dim
        return layer.quant_method.apply(layer, torch.eye(width), None).T

    found = {"lm_head.weight": of(model.lm_head), "model.norm.weight": model.model.norm.weight}
    embed = getattr(model.model.embed_tokens, "base_layer", model.model.embed_tokens)
    found["model.embed_tokens.weight"] = embed.weight
    for place, layer in enumerate(model.model.layers):
        prefix = f"model.layers.{place}."
        attention = layer.self_attn
        sizes = [attention.q_size, attention.kv_size, attention.kv_size]
        for name, part in zip("qkv", of(attention.qkv_proj).split(sizes), strict=True):
            found[f"{prefix}self_attn.{name}_proj.weight"] = part
        found[f"{prefix}self_attn.o_proj.weight"] = of(attention.o_proj)
        for name, part in zip(("gate", "up"), of(layer.mlp.gate_up_proj).chunk(2), strict=True):
            found[f"{prefix}mlp.{name}_proj.weight"] = part
        found[f"{prefix}mlp.down_proj.weight"] = of(layer.mlp.down_proj)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{prefix}{name}.weight"] = getattr(layer, name).weight
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def differing(engine, model):
    """Names of the tensors that the engine has otherwise than ``model``; the vocabulary's padding is cut off."""
    (found,) = engine._llm.collective_rpc(engine_weights)
    expected = dict(model.state_dict())
    assert found.keys() == expected.keys()
    return [name for name, tensor in expected.items() if not torch.equal(found[name][: len(tensor)], tensor)]


@pytest.fixture(scope="session")
def kit():
    """The functions above; a conftest cannot be imported."""
    names = ("made", "policy_of", "give", "changed", "logps_of", "greedy_of", "differing")
    return type("Kit", (), {name: staticmethod(globals()[name]) for name in names})


@pytest.fixture(scope="module")
def run_limits():
    pytest.importorskip("vllm", reason="vLLM is not installed; make vllm installs it")
    from posttrain.generation.vllm.requests import Limits

    return functools.partial(Limits, positions=128)

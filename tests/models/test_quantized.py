"""A quantised base under adapters: gradients are those of the dequantised weights, whatever ran before."""

import pytest
import torch
from posttrain.contract.pad import sequences_of
from posttrain.contract.views import Example, Sequence
from posttrain.models.load import load_policy
from posttrain.network.chunked_head import TokenQuery
from posttrain.settings import Settings
from posttrain_testkit.tiny import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

bitsandbytes = pytest.importorskip("bitsandbytes", reason="quantised models need the extra posttrain[qlora]")


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=13,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def gradients(policy) -> dict[str, torch.Tensor]:
    rows = [Example({"completion": [Sequence(torch.tensor([4, 5, 6, 7, 2]), torch.arange(5) > 1)]})]
    policy.zero_grad()
    policy(sequences_of(rows), TokenQuery())["logps"].sum().backward()
    return {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


def dequantised(folder: str, quantised) -> LlamaForCausalLM:
    """The plain model with the weights that the 4-bit ones stand for."""
    plain = LlamaForCausalLM.from_pretrained(folder)
    by_name = dict(quantised.inner.named_modules())
    for name, module in plain.named_modules():
        other = by_name.get(name)
        base = getattr(other, "base_layer", other)
        if isinstance(module, torch.nn.Linear) and isinstance(base, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(base.weight.data, base.weight.quant_state)
            module.weight.data = weight.reshape(module.weight.shape).float()
    return plain


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_gradients_are_those_of_the_dequantised_weights(folder, kind):
    settings = Settings(model=folder, quantize=kind, lora=True, lora_rank=4, device="cpu", dtype="float32")
    policy = load_policy(folder, tiny_tokenizer(), settings.model).policy
    kinds = {type(getattr(m, "base_layer", m)).__name__ for m in policy.modules()}
    assert "Linear4bit" in kinds
    first = gradients(policy)
    plain = dequantised(folder, policy)
    same = Settings(model=folder, lora=True, lora_rank=4, device="cpu")
    expected = gradients(load_policy(plain, tiny_tokenizer(), same.model).policy)
    assert set(first) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(first[name], gradient, rtol=1e-3, atol=1e-4)
    policy.eval()
    with torch.no_grad():
        policy.inner(input_ids=torch.tensor([[4, 5, 6]]))
    policy.train()
    for name, gradient in gradients(policy).items():
        torch.testing.assert_close(gradient, first[name], rtol=1e-5, atol=1e-6)

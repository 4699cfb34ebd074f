"""Modules that keep less for their backward pass: the same numbers, less memory."""

import copy

import pytest
import torch
from posttrain.network.kernels.cpu import recompute_ops
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

CONFIG = LlamaConfig(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, pad_token_id=3
)


def model(kind=torch.float32):
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).to(kind)


def gradients(module, ids):
    module.zero_grad()
    logits = module(input_ids=ids, use_cache=False).logits
    logits.log_softmax(-1)[..., 1].sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in module.named_parameters()}


def test_logits_are_equal_and_gradients_agree():
    """The forward pass is the plain one bit for bit; the gradients are summed in another order."""
    plain, ours = model(), model()
    assert (
        recompute_ops.use_recomputing_ops(ours) == 2 * 3 + 2
    )  # two norms and an MLP a layer, the last norm, the embedding
    ids = torch.tensor([[5, 3, 8, 8, 30, 1]])
    (wanted, expected), (logits, found) = gradients(plain, ids), gradients(ours, ids)
    assert torch.equal(logits, wanted)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_gradients_agree_with_finite_differences():
    torch.manual_seed(0)
    states, gate, up = (torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    scale, down = torch.randn(4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, w: recompute_ops._Norm.apply(x, w, 1e-6), (states, scale.requires_grad_())
    )
    assert torch.autograd.gradcheck(recompute_ops._GatedLinear.apply, (gate, up, down.requires_grad_()))


def test_less_is_kept():
    """Of a gated layer the activated gate and the product are gone, of a norm the normalised states."""

    def kept(module, states):
        found = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: found.setdefault(t.data_ptr(), t), lambda t: t):
            module(states)
        weights = {p.data_ptr() for p in module.parameters()}
        return sum(t.numel() for at, t in found.items() if at not in weights and t.data_ptr() != states.data_ptr())

    states = torch.randn(1, 10, 16, requires_grad=True)
    mlp, norm = LlamaMLP(CONFIG), LlamaRMSNorm(16)
    before = kept(mlp, states), kept(norm, states)
    assert recompute_ops.use_recomputing_ops(mlp) == recompute_ops.use_recomputing_ops(norm) == 1
    assert before == (4 * 240, 160 + 10)  # gate, its activation, up, the product; normalised states and their scale
    assert (kept(mlp, states), kept(norm, states)) == (2 * 240, 10)


def test_what_computes_something_else_is_left_alone():
    """Gemma multiplies by one plus the weight; a layer with another activation or an adapter inside is not ours."""

    class Shifted(LlamaRMSNorm):
        def forward(self, hidden_states):
            return super().forward(hidden_states) + 1e-3

    other = LlamaMLP(LlamaConfig(hidden_size=8, intermediate_size=8, num_attention_heads=2, hidden_act="gelu"))
    for module in (Shifted(8), Gemma2RMSNorm(8), other, LlamaRMSNorm(8).to(torch.bfloat16)):
        assert recompute_ops.use_recomputing_ops(module) == 0
        assert "forward" not in module.__dict__


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"sparse": True}, {"scale_grad_by_freq": True}])
def test_embeddings_with_options_are_left_alone(option):
    assert recompute_ops.use_recomputing_ops(nn.Embedding(4, 3, **option)) == 0


def test_a_copy_is_its_own():
    """A frozen copy, as a reference is one, must not compute with the weights of the model it was copied from."""
    ours = model()
    recompute_ops.use_recomputing_ops(ours)
    frozen = copy.deepcopy(ours)
    ids = torch.tensor([[5, 3, 8]])
    before = frozen(input_ids=ids, use_cache=False).logits
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(2)
    assert torch.equal(frozen(input_ids=ids, use_cache=False).logits, before)

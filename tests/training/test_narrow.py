"""Linear layers that multiply in bfloat16 on a CPU: exact forward passes, gradients within its rounding."""

import copy

import pytest
import torch
from posttrain.errors import SettingsError
from posttrain.network.kernels.cpu import bf16_backward, onednn_weights, recompute_ops
from posttrain.network.kernels.cpu.gradient_buffers import clear_gradients, close_gradients
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

CONFIG = LlamaConfig(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, pad_token_id=3
)
IDS = torch.tensor([[5, 3, 8, 8, 30, 1, 17, 2]])
#: Of a gradient against float64's, relative to its norm: bfloat16 keeps 8 bits, and a few products follow each other.
NEAR = 2e-2


def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG)


def gradients(module, autocast=False):
    module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = module(input_ids=IDS, use_cache=False).logits
    logits.log_softmax(-1)[..., 1].sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in module.named_parameters()}


def distance(found, exact):
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def test_the_forward_pass_is_exact_and_gradients_are_rounded():
    plain, ours = model(), model()
    assert (
        recompute_ops.use_recomputing_ops(ours, narrowed=True) == 2 * (2 + 4 + 1 + 3) + 2
    )  # norms, attention, MLPs and their layers
    exact = gradients(plain.double())[1]
    (wanted, _), (logits, found) = gradients(model()), gradients(ours)
    assert torch.equal(logits, wanted)
    distances = {name: distance(found[name], gradient) for name, gradient in exact.items()}
    assert max(distances.values()) < NEAR
    exact_ones = {"lm_head.weight", "model.norm.weight"}
    assert all((d < 1e-5) == (name in exact_ones) for name, d in distances.items())
    assert all(gradient.dtype == torch.float32 for gradient in found.values())


def test_under_autocast_both_passes_are_as_near_as_torch_is():
    plain, ours, exact = model(), model(), gradients(model().double())
    recompute_ops.use_recomputing_ops(ours, narrowed=True)
    (wanted, expected), (logits, found) = gradients(plain, autocast=True), gradients(ours, autocast=True)
    assert distance(logits, exact[0]) < 1.5 * distance(wanted, exact[0])
    assert distance(logits, exact[0]) > 1e-4
    for name, gradient in exact[1].items():
        assert distance(found[name], gradient) < max(NEAR, 1.5 * distance(expected[name], gradient))


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_of_several_passes_are_added_up_in_place(autocast):
    """The memory that the step's gradient has, and the same sums as autograd's."""
    ours = model()
    recompute_ops.use_recomputing_ops(ours, narrowed=True)
    wanted = {name: 3 * gradient for name, gradient in gradients(ours, autocast)[1].items()}
    parameters = list(ours.parameters())
    clear_gradients(parameters)
    memory = [p.grad.data_ptr() for p in parameters]
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = ours(input_ids=IDS, use_cache=False).logits
        logits.log_softmax(-1)[..., 1].sum().backward()
    close_gradients(parameters)
    assert [p.grad.data_ptr() for p in parameters] == memory
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-5)


def test_biases_and_frozen_weights():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    exact = copy.deepcopy(layer).double()
    recompute_ops.use_recomputing_ops(layer, narrowed=True)
    layer[0].weight.requires_grad_(False)
    states = torch.randn(2, 3, 6)
    layer(states).pow(2).sum().backward()
    exact(states.double()).pow(2).sum().backward()
    assert layer[0].weight.grad is None
    for found, wanted in ((layer[0].bias, exact[0].bias), (layer[1].bias, exact[1].bias)):
        assert distance(found.grad, wanted.grad) < NEAR


def test_half_is_kept_and_once():
    """Of a gated layer its input, gate and up in bfloat16; query, key and value have one input and one copy."""

    def kept(modules, states):
        found = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: found.setdefault(t.data_ptr(), t), lambda t: t):
            for module in modules:
                module(states)
        weights = {p.data_ptr() for module in modules for p in module.parameters()}
        return sum(t.nbytes for at, t in found.items() if at not in weights)

    def layers():
        return [nn.Linear(16, 8, bias=False) for _ in range(3)]

    states = torch.randn(1, 10, 16, requires_grad=True)
    mlp, together = LlamaMLP(CONFIG), layers()
    assert kept([LlamaMLP(CONFIG)], states) == 4 * (160 + 4 * 240)  # input, gate, its activation, up, the product
    assert kept(layers(), states) == 4 * 160
    for module in (mlp, *together):
        recompute_ops.use_recomputing_ops(module, narrowed=True)
    assert kept([mlp], states) == 2 * (160 + 2 * 240)
    assert kept(together, states) == 2 * 160


def test_states_that_are_written_over_are_copied_again():
    layer = nn.Linear(4, 3)
    recompute_ops.use_recomputing_ops(layer, narrowed=True)
    states = torch.randn(2, 4)
    layer(states)
    states.mul_(2)
    layer.zero_grad()
    layer(states).sum().backward()
    assert distance(layer.weight.grad[0], states.sum(0)) < NEAR


def test_sampling_has_its_packed_layers_and_leaves_these(monkeypatch):
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(onednn_weights, "slow_mkl", lambda: True)
    monkeypatch.setattr(onednn_weights, "LARGE", 0)
    ours = model()
    recompute_ops.use_recomputing_ops(ours, narrowed=True)
    layer = ours.model.layers[0].self_attn.q_proj
    with torch.no_grad(), onednn_weights.prepacked_weights(ours):
        ours(input_ids=IDS)
        assert isinstance(layer.forward, onednn_weights._Packed)
        assert layer.forward.weight is not None
    assert bf16_backward.is_narrow(layer)


@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_a_run_begins_as_in_float32_and_learns_like_it(train, method):
    """Log-probs are exact: the first step's loss is equal, and the others are near."""
    plain, ours = (train(method, bfloat16_gradients=on, learning_rate=1e-3) for on in (False, True))
    losses = [[line["loss"] for line in run.metrics] for run in (plain, ours)]
    norms = [[line["grad_norm"] for line in run.metrics] for run in (plain, ours)]
    assert losses[0][0] == losses[1][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3, abs=1e-4)
    assert norms[0][0] != norms[1][0]
    assert norms[1][0] == pytest.approx(norms[0][0], rel=NEAR)


@pytest.mark.parametrize("option", ["bfloat16_gradients", "autocast"])
def test_what_only_saves_memory_changes_no_number(train, option):
    runs = [train("sft", **{option: True}, gradient_checkpointing=on) for on in (False, True)]
    plain, recomputed = ([line["loss"] for line in run.metrics] for run in runs)
    assert recomputed == pytest.approx(plain, rel=1e-6)


def test_adapters_are_trained_too(train):
    plain, ours = (train("sft", bfloat16_gradients=on, lora=True, lora_rank=4) for on in (False, True))
    losses = [[line["loss"] for line in run.metrics] for run in (plain, ours)]
    assert losses[0][0] == losses[1][0]
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)
    assert losses[1][-1] < losses[1][0]


def test_where_there_is_nothing_to_narrow_the_run_says_so(train):
    with pytest.raises(SettingsError, match=r"for float32 weights on a CPU, and these are torch\.bfloat16 on cpu"):
        train("sft", bfloat16_gradients=True, dtype="bfloat16")

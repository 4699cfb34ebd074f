"""Weights in oneDNN's order while sampling: the same products, whatever happens to the weights, and no trace after."""

import copy

import pytest
import torch
from posttrain.contract.generation import Sampling
from posttrain.generation.local.hf import HfGenerator
from posttrain.network.kernels.cpu import onednn_weights
from posttrain.network.kernels.cpu.matmul import has_bfloat16_kernels
from posttrain.network.kernels.cpu.onednn_weights import prepacked_weights as packing
from torch import nn

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this build of torch has no oneDNN"
)


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    """As on a processor that gains by it, for models of any size."""
    monkeypatch.setattr(onednn_weights, "slow_mkl", lambda: True)
    monkeypatch.setattr(onednn_weights, "LARGE", 0)


def wide(module, states):
    """The product in float64."""
    bias = None if module.bias is None else module.bias.double()
    return nn.functional.linear(states.double(), module.weight.double(), bias)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1,), (4,), (3, 5), (600,), (0,)])
def test_products_are_exact(shape, bias):
    torch.manual_seed(0)
    layer, states = nn.Linear(48, 80, bias=bias), torch.randn(*shape, 48)
    with torch.no_grad(), packing(layer):
        found = layer(states)
        assert isinstance(layer.forward, onednn_weights._Packed)
        assert layer.forward.weight is not None
    torch.testing.assert_close(found.double(), wide(layer, states), rtol=1e-5, atol=1e-5)


def test_changed_weights_are_noticed():
    """In place, as a trainer's update or arriving weights do it, or by another tensor in the same place."""
    torch.manual_seed(0)
    layer, states = nn.Linear(16, 24), torch.randn(4, 16)
    with torch.no_grad(), packing(layer):
        before = layer(states)
        for change in (lambda: layer.weight.mul_(2), lambda: layer.weight.copy_(torch.randn(24, 16))):
            change()
            torch.testing.assert_close(layer(states).double(), wide(layer, states), rtol=1e-5, atol=1e-5)
        layer.weight.data = torch.randn(24, 16)
        torch.testing.assert_close(layer(states).double(), wide(layer, states), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, layer(states))


def test_nothing_is_left_behind(model):
    def fail():
        with packing(model):
            assert "forward" in model.lm_head.__dict__
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("case", ["bfloat16", "autocast"])
@pytest.mark.parametrize("bias", [False, True])
def test_products_in_bfloat16(case, bias):
    """Weights of that type, or rounded copies of float32 ones, half as large; torch's own where oneDNN has none."""
    torch.manual_seed(0)
    layer, states = nn.Linear(48, 80, bias=bias), torch.randn(4, 48)
    wanted = wide(copy.deepcopy(layer).bfloat16(), states.bfloat16())
    if case == "bfloat16":
        layer, states = layer.bfloat16(), states.bfloat16()
    with torch.no_grad(), packing(layer), torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        found = layer(states)
        assert found.dtype == torch.bfloat16
        if has_bfloat16_kernels():
            assert layer.forward.weight.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), wanted, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("case", ["float64", "float16", "gradient"])
def test_what_it_cannot_do_goes_the_plain_way(case):
    layer, states = nn.Linear(16, 24), torch.randn(4, 16)
    if case == "float64":
        layer, states = layer.double(), states.double()
    with (
        torch.set_grad_enabled(case == "gradient"),
        packing(layer),
        torch.autocast("cpu", torch.float16, enabled=case == "float16"),
    ):
        found = layer(states)
    with torch.autocast("cpu", torch.float16, enabled=case == "float16"):
        assert torch.equal(found, layer(states))
    assert found.requires_grad == (case == "gradient")


@pytest.mark.parametrize("case", ["small", "other processor", "no memory"])
def test_where_it_is_not_used(case, monkeypatch):
    if case == "small":
        monkeypatch.setattr(onednn_weights, "LARGE", 16 * 24 + 1)
    if case == "other processor":
        monkeypatch.setattr(onednn_weights, "slow_mkl", lambda: False)
    if case == "no memory":
        monkeypatch.setattr(onednn_weights, "MEMORY_SHARE", 1e-12)
    layer = nn.Linear(16, 24)
    with packing(layer):
        assert "forward" not in layer.__dict__


def test_samples_are_those_of_the_plain_layers(model, tokenizer, prompts, monkeypatch):
    """Also after the weights have changed between two calls."""
    found = {}
    for way in (True, False):
        monkeypatch.setattr(onednn_weights, "slow_mkl", lambda way=way: way)
        own = copy.deepcopy(model)
        generator = HfGenerator(own, tokenizer, {256, 257}, 64)
        answers = []
        for _ in range(2):
            answers += generator.generate(prompts, Sampling(12), [[1, 2]] * len(prompts))
            with torch.no_grad():
                own.model.layers[0].mlp.down_proj.weight.mul_(1.5)
        found[way] = [completion for group in answers for completion in group]
    for ours, plain in zip(found[True], found[False], strict=True):
        assert ours.ids.tolist() == plain.ids.tolist()
        torch.testing.assert_close(ours.logps, plain.logps, rtol=1e-4, atol=1e-4)

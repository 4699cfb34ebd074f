"""Matrix products through oneDNN: as exact as float32 is, or not at all."""

import pytest
import torch
from posttrain.network.kernels.cpu import matmul
from torch import nn


@pytest.fixture(autouse=True)
def facts(monkeypatch, tmp_path):
    """An AMD processor and no GPU, whatever the machine has; the setting is put back."""
    before = torch.get_float32_matmul_precision()
    file = tmp_path / "cpuinfo"
    file.write_text("vendor_id : AuthenticAMD\n")
    monkeypatch.setattr(matmul, "CPU_FACTS", file)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    torch.set_float32_matmul_precision("highest")
    yield file
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="module")
def large():
    return nn.Linear(4000, 2501, bias=False)


def test_products_stay_float32(large):
    """Against float64: the rounding of float32, of which bfloat16's would be thousands of times more."""
    used = matmul.prefer_onednn(large)
    assert torch.get_float32_matmul_precision() == ("medium" if used else "highest")
    left, right = torch.randn(96, 300), torch.randn(300, 80)
    exact = left.double() @ right.double()
    assert float((left @ right - exact).abs().max()) <= 1e-4
    layer = nn.functional.linear(left, right.T.contiguous())
    assert float((layer - exact).abs().max()) <= 1e-4


def test_it_is_left_alone_where_values_would_be_rounded(monkeypatch, large):
    monkeypatch.setattr(matmul, "_exact", lambda: False)
    assert not matmul.prefer_onednn(large)
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("case", ["small", "intel", "no file", "gpu"])
def test_where_it_would_not_pay(case, monkeypatch, facts, large):
    if case == "intel":
        facts.write_text("vendor_id : GenuineIntel\n")
    if case == "no file":
        facts.unlink()
    if case == "gpu":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not matmul.prefer_onednn(nn.Linear(3, 3) if case == "small" else large)
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_rounded_product_is_noticed(monkeypatch):
    """The trial sees the rounding of bfloat16."""
    assert matmul._exact()
    real = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: real(a.bfloat16(), b.bfloat16()).float())
    assert not matmul._exact()


@pytest.mark.parametrize("chosen", ["highest", "medium"])
def test_attention_does_its_own_products_elsewhere(chosen, monkeypatch):
    """The setting that sends products to oneDNN is off inside the kernels, forward and backward, and on around them."""
    real, inside = matmul.scaled_dot_product_attention, []

    class Spy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, states):
            inside.append(torch.get_float32_matmul_precision())
            return states.clone()

        @staticmethod
        def backward(ctx, gradient):
            inside.append(torch.get_float32_matmul_precision())
            return gradient

    monkeypatch.setattr(matmul, "scaled_dot_product_attention", lambda q, k, v: Spy.apply(real(q, k, v)))
    torch.set_float32_matmul_precision(chosen)
    states = [torch.randn(1, 2, 5, 4, requires_grad=True) for _ in range(3)]
    mixed = matmul.attend(*states)
    assert torch.get_float32_matmul_precision() == chosen
    mixed.sum().backward()
    assert torch.get_float32_matmul_precision() == chosen
    assert inside == ["highest", "highest"]
    expected = torch.autograd.grad(real(*states).sum(), states)
    for state, gradient in zip(states, expected, strict=True):
        torch.testing.assert_close(state.grad, gradient)

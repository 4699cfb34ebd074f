"""Memory that passes use in turn: nobody's numbers are overwritten while they are needed."""

import pytest
import torch
from posttrain.network import chunked_head
from posttrain.network.chunked_head import Head, TokenQuery, token_statistics
from posttrain.network.kernels.cpu import thread_memory
from posttrain.network.kernels.cpu.thread_memory import give_back, reused, reused_copy, taken
from torch import nn

HIDDEN, VOCABULARY = 16, 53


@pytest.fixture(autouse=True)
def own_memory(monkeypatch):
    monkeypatch.setattr(thread_memory, "_blocks", thread_memory._Blocks())


def test_a_name_has_one_memory_and_a_taken_tensor_has_its_own():
    first = reused_copy("a", torch.arange(6.0).view(2, 3), torch.float64)
    assert first.dtype == torch.float64
    assert first.tolist() == [[0, 1, 2], [3, 4, 5]]
    same, other = (reused(name, (3,), torch.float32).data_ptr() for name in "ab")
    assert same == first.data_ptr() != other
    mine = taken("a", (4,), torch.float32)
    other = taken("a", (4,), torch.float32)
    assert mine.data_ptr() == first.data_ptr() != other.data_ptr()
    give_back("a", mine)
    assert reused("a", (2,), torch.bfloat16).data_ptr() == mine.data_ptr()


def test_a_larger_tensor_gets_larger_memory(monkeypatch):
    monkeypatch.setattr(thread_memory, "LEAST", 8)
    assert reused("a", (2,), torch.float32).fill_(1).sum() == 2
    assert reused("a", (100,), torch.float32).fill_(1).sum() == 100


def setup(tokens, seed):
    torch.manual_seed(seed)
    linear = nn.Linear(HIDDEN, VOCABULARY, bias=False)
    return linear, torch.randn(tokens, HIDDEN, requires_grad=True), torch.randint(0, VOCABULARY, (tokens,))


@pytest.mark.parametrize("autocast", [False, True])
def test_passes_whose_backward_passes_come_later_keep_their_numbers(autocast):
    """Two heads of one shape, forward, forward, a pass without gradient, backward, backward: as each one alone."""
    cases = [setup(11, 0), setup(19, 1)]

    def forward(linear, hidden, labels):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return token_statistics(hidden, labels, Head(linear), TokenQuery(8))["logps"]

    alone = []
    for linear, hidden, labels in cases:
        logps = forward(linear, hidden, labels)
        alone.append((logps.detach(), *torch.autograd.grad(logps.sum(), [hidden, linear.weight])))
    together = [forward(*case) for case in cases]
    with torch.inference_mode():
        seen = forward(*cases[0])
    assert torch.equal(seen, alone[0][0])
    for (linear, hidden, _), logps, wanted in zip(cases, together, alone, strict=True):
        found = (logps.detach(), *torch.autograd.grad(logps.sum(), [hidden, linear.weight]))
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_a_second_backward_pass_of_a_graph_computes_the_logits_again():
    linear, hidden, labels = setup(11, 0)
    logps = token_statistics(hidden, labels, Head(linear), TokenQuery(8))["logps"]
    first = torch.autograd.grad(logps.sum(), [hidden, linear.weight], retain_graph=True)
    reused("wide logits", (8, VOCABULARY), torch.float32).fill_(torch.nan)
    second = torch.autograd.grad(logps.sum(), [hidden, linear.weight])
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_weights_gradient_under_autocast_is_summed_by_blocks_of_its_rows(monkeypatch):
    """Against float64: each chunk's product is rounded to bfloat16 once, in all blocks, the last one too."""
    linear, hidden, labels = setup(64, 0)
    gradients = []
    for rows in (7, 4096):
        monkeypatch.setattr(chunked_head, "ROUNDED_ROWS", rows)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logps = token_statistics(hidden, labels, Head(linear), TokenQuery(16))["logps"]
        gradients.append(torch.autograd.grad(logps.sum(), linear.weight)[0])
    wide = linear.weight.detach().double().requires_grad_()
    logps = (hidden.detach().double() @ wide.T).log_softmax(-1).gather(1, labels[:, None])
    (exact,) = torch.autograd.grad(logps.sum(), wide)
    for found in gradients:
        assert found.dtype == torch.float32
        assert float((found - exact).abs().max()) < 2**-6 * float(exact.abs().max())

"""The chunked head against plain logits: values, gradients, every option of the head (S11, S12, R8, R11, R12)."""

import weakref

import pytest
import torch
from posttrain.network.chunked_head import Head, TokenQuery, token_statistics
from torch import nn

TOKENS, HIDDEN, VOCABULARY = 37, 16, 53


def setup(bias: bool = False, dtype: torch.dtype = torch.float64):
    torch.manual_seed(0)
    linear = nn.Linear(HIDDEN, VOCABULARY, bias=bias, dtype=dtype)
    hidden = torch.randn(TOKENS, HIDDEN, dtype=dtype, requires_grad=True)
    return linear, hidden, torch.randint(0, VOCABULARY, (TOKENS,)), torch.randn(TOKENS, dtype=torch.float64)


def naive(linear, hidden, labels, head: Head, temperature: float):
    logits = linear(hidden) * head.scale
    if head.softcap:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return torch.log_softmax(logits / temperature, -1)[torch.arange(TOKENS), labels]


@pytest.mark.parametrize("chunk", [1, 7, 37, 1000])
@pytest.mark.parametrize(
    ("bias", "scale", "softcap", "temperature"),
    [
        (False, 1.0, None, 1.0),
        (False, 0.3, None, 0.5),
        (True, 1.0, None, 1.0),
        (False, 1.0, 2.0, 0.7),
        (True, 2.0, 3.0, 1.3),
    ],
)
def test_log_probs_and_gradients_are_those_of_full_logits(chunk, bias, scale, softcap, temperature):
    linear, hidden, labels, weights = setup(bias)
    head = Head(linear, scale, softcap)
    expected = naive(linear, hidden, labels, head, temperature)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), [hidden, *linear.parameters()])
    found = token_statistics(hidden, labels, head, TokenQuery(chunk, temperature))["logps"]
    found_gradients = torch.autograd.grad((found * weights).sum(), [hidden, *linear.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [5, 64])
def test_statistics_carry_gradient_and_detached_ones_do_not(chunk):
    linear, hidden, labels, weights = setup()

    def statistics(logits, labels):
        logps = logits.log_softmax(-1)
        return {"entropy": -(logps.exp() * logps).sum(-1), "top": logits.detach().amax(-1)}

    found = token_statistics(hidden, labels, Head(linear), TokenQuery(chunk, statistics=statistics))
    logps = linear(hidden).log_softmax(-1)
    expected = -(logps.exp() * logps).sum(-1)
    mixed = (found["entropy"] * weights).sum() + 0.3 * found["logps"].sum()
    expected_mixed = (expected * weights).sum() + 0.3 * logps[torch.arange(TOKENS), labels].sum()
    ours = torch.autograd.grad(mixed, [hidden, linear.weight])
    theirs = torch.autograd.grad(expected_mixed, [hidden, linear.weight])
    torch.testing.assert_close(found["entropy"], expected)
    assert not found["top"].requires_grad
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_a_frozen_head_gets_no_gradient_and_the_states_still_do():
    linear, hidden, labels, _ = setup()
    linear.requires_grad_(False)
    token_statistics(hidden, labels, Head(linear), TokenQuery(8))["logps"].sum().backward()
    assert linear.weight.grad is None
    assert hidden.grad is not None
    assert hidden.grad.abs().sum() > 0


def test_no_trained_token_at_all():
    linear, hidden, labels, _ = setup()
    found = token_statistics(hidden[:0], labels[:0], Head(linear), TokenQuery(8))["logps"]
    found.sum().backward()
    assert found.shape == (0,)
    assert linear.weight.grad is None or not linear.weight.grad.any()


def test_bfloat16_sums_chunks_in_float32():
    """R12: many small chunks must not lose what one large chunk keeps."""
    linear, hidden, labels, _ = setup(dtype=torch.bfloat16)
    gradients = []
    for chunk in (1, 1000):
        found = token_statistics(hidden, labels, Head(linear), TokenQuery(chunk))["logps"]
        gradients.append(torch.autograd.grad(found.sum(), linear.weight)[0].float())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=2e-2, atol=2e-2)


def test_full_logits_never_exist():
    """The largest tensor over the vocabulary, the weight's own shape apart, is one chunk of logits."""
    linear, hidden, labels, _ = setup()
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            nonlocal largest
            result = function(*arguments, **(keywords or {}))
            if (
                isinstance(result, torch.Tensor)
                and result.ndim == 2
                and result.shape[1] == VOCABULARY
                and result.shape[0] != HIDDEN
            ):
                largest = max(largest, result.shape[0])
            return result

    with Watch():
        token_statistics(hidden, labels, Head(linear), TokenQuery(4))["logps"].sum().backward()
    assert largest == 4


class Peak(torch.utils._python_dispatch.TorchDispatchMode):
    """Most bytes at one time of what was allocated since the mode was entered."""

    def __init__(self):
        super().__init__()
        self.live, self.now, self.most = set(), 0, 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            storage = one.untyped_storage() if isinstance(one, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.live:
                self.live.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
                self.most = max(self.most, self.now)
        return result

    def free(self, key, count):
        self.live.discard(key)
        self.now -= count


def test_memory_does_not_grow_by_the_length_times_the_vocabulary():
    """Longer rows keep no more than their hidden states' gradient and some numbers a token; logits are 500 numbers."""
    vocabulary, width, peaks = 500, 4, []
    for tokens in (200, 800):
        linear = torch.nn.Linear(width, vocabulary, bias=False)
        hidden, labels = torch.randn(tokens, width, requires_grad=True), torch.arange(tokens) % vocabulary
        with Peak() as peak:
            (-token_statistics(hidden, labels, Head(linear), TokenQuery(16))["logps"].mean()).backward()
        peaks.append(peak.most)
        assert peak.most > 4 * 16 * vocabulary  # one chunk of logits was seen
    assert (peaks[1] - peaks[0]) / 600 / 4 < 16  # numbers of float32 a token


class Memory(torch.utils._python_dispatch.TorchDispatchMode):
    """Where tensors ``(4, VOCABULARY)`` lay, and how many products gave one."""

    def __init__(self):
        super().__init__()
        self.seen, self.products = {}, 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if isinstance(result, torch.Tensor) and result.shape == (4, VOCABULARY):
            self.seen[result.untyped_storage().data_ptr()] = result  # kept, so that no address comes back
            self.products += function is torch.ops.aten.mm.out
        return result


@pytest.mark.parametrize("statistics", [None, lambda logits, labels: {"top": logits.detach().amax(-1)}])
def test_one_piece_of_memory_serves_the_logits_of_all_chunks(statistics):
    """Blocks that are allocated chunk by chunk pile up in the C library's heap: both passes use the same one.

    37 tokens are 9 chunks of 4 and the first of 1; the backward pass multiplies all but the last once more.
    """
    linear, hidden, labels, _ = setup()
    with Memory() as memory:
        request = TokenQuery(4, 0.7, statistics)
        token_statistics(hidden, labels, Head(linear, 0.5), request)["logps"].sum().backward()
    assert len(memory.seen) == 1
    assert memory.products == 9 + 8


def test_a_second_backward_pass_gives_the_same():
    """The first one writes over what the forward pass has kept."""
    linear, hidden, labels, weights = setup()
    found = token_statistics(hidden, labels, Head(linear), TokenQuery(8))["logps"]
    loss = (found * weights).sum()
    once, again = (torch.autograd.grad(loss, [hidden, linear.weight], retain_graph=True) for _ in range(2))
    for one, other in zip(once, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_statistics_may_give_a_part_of_the_logits():
    """Their memory is written over afterwards."""
    linear, hidden, labels, _ = setup()
    request = TokenQuery(8, statistics=lambda logits, labels: {"first": logits[:, 0].detach()})
    found = token_statistics(hidden, labels, Head(linear), request)["first"]
    torch.testing.assert_close(found, linear(hidden)[:, 0].detach(), rtol=1e-12, atol=1e-12)


def test_autocast_computes_the_chunks_in_bfloat16_in_both_directions():
    linear, hidden, labels, weights = setup(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = token_statistics(hidden, labels, Head(linear), TokenQuery(8))["logps"]
    with torch.autocast("cpu", dtype=torch.bfloat16):  # torch 2.6 would use the weight that was cast without gradient
        expected = linear(hidden).float().log_softmax(-1)[torch.arange(TOKENS), labels]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # the same bfloat16 logits
    ours = torch.autograd.grad((found * weights).sum(), [hidden, linear.weight])
    theirs = torch.autograd.grad((expected * weights).sum(), [hidden, linear.weight])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)

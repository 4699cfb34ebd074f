"""Attention by bfloat16 products: beside float64, in whole models, and only where it was measured to be faster."""

import pytest
import torch
from posttrain.contract.views import Sequence
from posttrain.network import attention
from posttrain.network.chunked_head import TokenQuery
from posttrain.network.find_head import find_head
from posttrain.network.kernels.cpu import attention as products
from posttrain.network.kernels.cpu import matmul, thread_memory
from posttrain.network.token_model import TokenModel
from posttrain_testkit.tiny import tiny_model

#: Rounding of a factor to bfloat16, 2**-9, a few times over; a missing scale, mask or head is off by far more.
NEAR = 2**-6


def states(n, heads, key_heads, new, seen, width, value_width=None, kind=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    shapes = [(n, heads, new, width), (n, key_heads, seen, width), (n, key_heads, seen, value_width or width)]
    return [torch.randn(shape, generator=generator).to(kind).requires_grad_() for shape in shapes]


def exact(query, key, value, mask, scale):
    """Attention and gradients in float64, head by head."""
    q, k, v = (one.detach().double().requires_grad_() for one in (query, key, value))
    group = q.shape[1] // k.shape[1]
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    heads = []
    for head in range(q.shape[1]):
        scores = q[:, head] @ k[:, head // group].transpose(1, 2) * scale
        heads.append(scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v[:, head // group])
    mixed = torch.stack(heads, 1)
    return mixed, torch.autograd.grad(mixed, (q, k, v), torch.ones_like(mixed).cumsum(2).cos())


def close(found, wanted):
    return float((found.double() - wanted).abs().max()) <= NEAR * float(wanted.abs().max())


@pytest.mark.parametrize(
    ("shape", "scale"),
    [
        ((1, 2, 2, 7, 7, 8), None),
        ((3, 6, 2, 40, 40, 16), None),  # query heads share key heads, rows of equal length together
        ((1, 2, 1, 600, 600, 8), None),  # three blocks of queries
        ((2, 4, 2, 30, 30, 8, 24), 0.4),  # values of another width, a scale of the model's own
    ],
)
def test_equal_to_float64_within_the_rounding_of_factors(shape, scale):
    query, key, value = states(*shape)
    mixed = products.by_products(query, key, value, None, scale)
    wanted, gradients = exact(query, key, value, None, shape[5] ** -0.5 if scale is None else scale)
    assert mixed.dtype == torch.bfloat16
    assert close(mixed.detach(), wanted.detach())
    found = torch.autograd.grad(mixed, (query, key, value), torch.ones_like(wanted).cumsum(2).cos().to(mixed.dtype))
    assert all(close(*pair) for pair in zip(found, gradients, strict=True))


def test_a_mask_says_which_keys_are_seen():
    """A window over a text that is continued, in two blocks of queries."""
    new, seen = 300, 340
    places = torch.arange(seen)
    distance = places[seen - new :, None] - places
    mask = (distance >= 0) & (distance < 50)
    query, key, value = states(2, 4, 2, new, seen, 8)
    mixed = products.by_products(query, key, value, mask, None)
    wanted, gradients = exact(query, key, value, mask, 8**-0.5)
    assert close(mixed.detach(), wanted.detach())
    found = torch.autograd.grad(mixed, (query, key, value), torch.ones_like(wanted).cumsum(2).cos().to(mixed.dtype))
    assert all(close(*pair) for pair in zip(found, gradients, strict=True))


def test_rows_may_have_masks_of_their_own():
    """Two padded rows of a sampler: the first lacks three keys at the left."""
    query, key, value = states(2, 4, 2, 5, 9, 8)
    mask = torch.ones(2, 1, 5, 9, dtype=torch.bool).tril(4)
    mask[0, ..., :3] = False
    mixed = products.by_products(query, key, value, mask, None)
    found = torch.autograd.grad(mixed, (query, key, value), torch.ones(mixed.shape).cumsum(2).cos().to(mixed.dtype))
    for row in range(2):
        own = slice(row, row + 1)
        wanted, gradients = exact(query[own], key[own], value[own], mask[row, 0], 8**-0.5)
        assert close(mixed[own].detach(), wanted.detach())
        assert all(close(ours[own], theirs) for ours, theirs in zip(found, gradients, strict=True))


def test_nothing_of_the_future_is_seen():
    query, key, value = (one.detach() for one in states(1, 4, 2, 280, 280, 8))
    before = products.by_products(query, key, value, None, None)
    key[:, :, 270:], value[:, :, 270:] = 50, -50
    after = products.by_products(query, key, value, None, None)
    assert torch.equal(before[:, :, :270], after[:, :, :270])
    assert not torch.equal(before[:, :, 270:], after[:, :, 270:])


def test_scores_keep_more_bits_than_bfloat16_has():
    """Scores near 300 that differ by 0.25, which bfloat16 would make equal, choose between two values."""
    key = torch.tensor([[300.0, 1.0], [300.0, 0.75]]).bfloat16()[None, None]
    query = torch.tensor([[1.0, 1.0]]).bfloat16()[None, None]
    value = torch.tensor([[1.0], [0.0]]).bfloat16()[None, None]
    mixed = products.by_products(query, key, value, torch.ones(1, 2, dtype=torch.bool), 1.0)
    assert float(mixed) == pytest.approx(1 / (1 + 2.718281828**-0.25), abs=2**-8)


def test_memory_taken_in_inference_serves_training(monkeypatch):
    monkeypatch.setattr(thread_memory, "_blocks", thread_memory._Blocks())
    query, key, value = states(1, 2, 2, 5, 5, 8)
    with torch.inference_mode():
        before = products.by_products(query, key, value, None, None)
    after = products.by_products(query, key, value, None, None)
    after.sum().backward()
    assert torch.equal(before, after)


@pytest.mark.parametrize("before", ["highest", "medium"])
def test_the_precision_of_products_is_put_back(before, monkeypatch):
    found = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(before)
    try:
        query, key, value = states(1, 2, 2, 5, 5, 8)
        products.by_products(query, key, value, None, None).sum().backward()
        assert torch.get_float32_matmul_precision() == before
        monkeypatch.setattr(products, "reused", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            products.by_products(query, key, value, None, None)
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision(found)


def test_used_in_bfloat16_without_dropout_where_products_are_faster(monkeypatch):
    monkeypatch.setattr(products, "_gains", lambda: True)
    wide = torch.zeros(1, 2, 3, 4)
    assert products.by_products_pays(wide.bfloat16(), 0.0)
    assert not products.by_products_pays(wide.bfloat16(), 0.1)
    assert not products.by_products_pays(wide, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert products.by_products_pays(wide, 0.0)
    with torch.autocast("cpu", torch.float16):
        assert not products.by_products_pays(wide, 0.0)
    assert not products.by_products_pays(wide.bfloat16().to("meta"), 0.0)
    monkeypatch.setattr(products, "_gains", lambda: False)
    assert not products.by_products_pays(wide.bfloat16(), 0.0)


def test_the_gain_is_measured_in_a_pass_as_outside(monkeypatch):
    """Under autocast both products would be bfloat16, and the gain about 1: it would never be used."""
    kinds = []
    real = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: kinds.append(real(a, b).dtype))
    with torch.autocast("cpu", torch.bfloat16):
        matmul.bfloat16_gain(size=8, products=1)
    assert kinds == [torch.float32, torch.bfloat16]


@pytest.fixture(params=[True, False], ids=["products", "fused"])
def ways(request, monkeypatch):
    monkeypatch.setattr(products, "_gains", lambda: request.param)
    monkeypatch.setattr(attention, "emulates_bfloat16", lambda _: False)
    used, real = [], products.by_products
    monkeypatch.setattr(attention, "by_products", lambda *given: used.append(1) or real(*given))
    yield
    assert bool(used) is request.param


def packed_model(kind):
    attention.register()
    model = tiny_model(dtype=kind)
    model.set_attn_implementation(attention.NAME)
    return TokenModel(model, find_head(model), packed=True, shared=True)


def test_packed_texts_of_a_model_are_those_of_each_alone(ways):
    """A group of three, a pair and another text with shared prompts under autocast, beside float64 without packing."""
    prompts = ([3, 4, 5, 6, 7, 8, 9, 10, 11], [6, 4, 5, 6, 7, 8, 9, 10], [12, 3])
    answers = ([[4, 2], [5, 6, 7, 2], [9]], [[4, 2], [12, 2]], [[8, 9, 10, 2]])
    rows = [
        Sequence(torch.tensor(prompt + answer), torch.arange(len(prompt + answer)) >= len(prompt))
        for prompt, group in zip(prompts, answers, strict=True)
        for answer in group
    ]
    policy, exact = packed_model(torch.float32), packed_model(torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        found = policy(rows, TokenQuery(3))["logps"]
    found.sum().backward()
    alone = []
    for row in rows:
        logits = exact.inner(input_ids=row.ids[None]).logits[0].log_softmax(-1)
        places = row.trained.nonzero()[:, 0]
        alone.append(logits[places - 1, row.ids[places]])
    wanted = torch.cat(alone)
    wanted.sum().backward()
    assert float((found.detach().double() - wanted.detach()).abs().max()) <= 0.12  # the fused kernel: 0.078
    for ours, theirs in zip(policy.parameters(), exact.parameters(), strict=True):
        off = float((ours.grad.double() - theirs.grad).norm())
        assert off <= 0.1 * float(theirs.grad.norm())

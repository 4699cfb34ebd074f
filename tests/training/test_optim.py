"""The optimiser's memory, which is taken before the first step, and updates that bfloat16 rounds away."""

import pytest
import torch
from posttrain.settings import Settings
from posttrain.training.optim import build_optimizer, reserve_moments, rounding_notes
from torch import nn


def two_layers(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_reserved_moments_are_those_that_adam_would_make_itself():
    ours, plain = two_layers(), two_layers()
    optimizer = build_optimizer(ours, Settings(learning_rate=0.1, weight_decay=0.01).optim)
    reserve_moments(optimizer)
    assert len(optimizer.state) == 4
    lazy = torch.optim.AdamW(
        [
            {"params": [p for p in plain.parameters() if p.ndim == n], "weight_decay": w}
            for n, w in ((2, 0.01), (1, 0.0))
        ],
        lr=0.1,
        fused=True,
    )
    for _ in range(3):
        for model, chosen in ((ours, optimizer), (plain, lazy)):
            model.zero_grad()
            model(torch.ones(2, 3)).pow(2).sum().backward()
            chosen.step()
    for mine, wanted in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, wanted)
        assert optimizer.state[mine].keys() == lazy.state[wanted].keys()
        for name, value in lazy.state[wanted].items():
            assert torch.equal(optimizer.state[mine][name], value)
            assert optimizer.state[mine][name].dtype == value.dtype


def test_a_restored_state_stays():
    model = two_layers()
    optimizer = build_optimizer(model, Settings(learning_rate=0.1).optim)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    again = build_optimizer(model, Settings(learning_rate=0.1).optim)
    again.load_state_dict(optimizer.state_dict())
    reserve_moments(again)
    assert [float(again.state[p]["step"]) for p in model.parameters()] == [1.0] * 4


def test_optimisers_without_moments_have_none():
    optimizer = build_optimizer(two_layers(), Settings(learning_rate=0.1, optimizer="sgd").optim)
    reserve_moments(optimizer)
    assert not optimizer.state


@pytest.mark.parametrize("name", ["adamw", "adamw_torch"])
def test_the_decays_and_the_epsilon_of_adam_by_hand(name):
    """Two gradients g, 3g of one weight: moments and both steps from the formulas, with decays unlike the usual."""
    weight = nn.Parameter(torch.tensor([[1.0]]))
    model = nn.Module()
    model.weight = weight
    options = {"adam_beta1": 0.5, "adam_beta2": 0.75, "adam_epsilon": 1.0, "weight_decay": 0.0, "optimizer": name}
    optimizer = build_optimizer(model, Settings(learning_rate=0.1, **options).optim)
    # first: m = 1, v = 1 of their corrected; 1 - 0.1 * 2 / (2 + 1)
    weight.grad = torch.tensor([[2.0]])
    optimizer.step()
    assert weight.item() == pytest.approx(1 - 0.1 * 2 / 3, rel=1e-6)
    # m = (0.5 * 1 + 0.5 * 6) / 0.75, v = (0.75 * 1 + 0.25 * 36) / 0.4375
    weight.grad = torch.tensor([[6.0]])
    optimizer.step()
    second = 0.1 * (3.5 / 0.75) / ((9.75 / 0.4375) ** 0.5 + 1)
    assert weight.item() == pytest.approx(1 - 0.1 * 2 / 3 - second, rel=1e-6)


@pytest.mark.parametrize("rate", [1e-6, 3e-5, 2.5e-4, 1e-3])
def test_the_share_of_numbers_that_no_update_of_this_size_changes(rate):
    """Counted by adding and subtracting it: every bfloat16 number of three powers of two around the bound."""
    size = 2.0 ** torch.arange(-3, 13)[:, None] * rate * 0.7
    numbers = (size * torch.linspace(1, 2, 50)).flatten().bfloat16()
    numbers = numbers[numbers.float().log2() % 1 != 0]  # the steps below a power of two are half as wide
    stay = ((numbers + rate).bfloat16() == numbers) & ((numbers - rate).bfloat16() == numbers)
    model = nn.Module()
    model.register_parameter("weight", nn.Parameter(torch.cat([numbers[stay], numbers[~stay][: int(stay.sum()) // 4]])))
    settings = Settings(learning_rate=rate).optim
    (said,) = rounding_notes(build_optimizer(model, settings), settings)
    share = int(stay.sum()) / model.weight.numel()
    assert said.startswith(
        f"bfloat16 rounds an update of the size of the learning rate {rate:g} away in {share:.0%} of"
    )
    model.register_parameter("weight", nn.Parameter(numbers[~stay]))
    assert not rounding_notes(build_optimizer(model, settings), settings)


def test_a_run_says_that_its_weights_cannot_move(train):
    """Numbers of about 0.1 have steps of 2**-11: an update of 1e-6 changes none of them."""

    def said(**options):
        return [note for note in train("sft", steps=1, **options).directory.facts()["notes"] if "bfloat16" in note]

    assert len(said(torch_dtype=torch.bfloat16, learning_rate=1e-6)) == 1
    assert not said(torch_dtype=torch.bfloat16, learning_rate=1e-1)
    assert not said(torch_dtype=torch.bfloat16, learning_rate=1e-6, optimizer="sgd")
    assert not said(torch_dtype=torch.bfloat16, learning_rate=0.0)
    assert not said(learning_rate=1e-6)

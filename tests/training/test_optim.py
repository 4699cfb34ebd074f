"""The optimiser's memory, which is taken before the first step."""

import torch
from posttrain.settings import Settings
from posttrain.training.optim import build_optimizer, reserve_moments
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

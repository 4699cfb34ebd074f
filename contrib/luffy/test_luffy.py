import math
from functools import partial

import pytest
import torch
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, completion_loss, method_beside, tensor

METHOD = method_beside(__file__)
loss_of = partial(completion_loss, METHOD)


def shown(new, worth, mask, old, source):
    return loss_of(new, worth, mask, old, source=source)


def test_loss_by_hand():
    """Samples: ratios 1 and 3/2 times -2. A demonstrated token has p / (p + 0.1) for an advantage of -1."""
    loss, metrics = shown(NEW, WORTH, MASK, OLD, ["policy", "data"])
    p = math.exp(-0.5) / 2
    assert loss.tolist() == pytest.approx([-2, -3, p / (p + 0.1)])
    assert metrics["demonstration_probability"].values[1, 0].item() == pytest.approx(p)
    assert metrics["ratio"].values[MASK].isnan().tolist() == [False, False, True]


def test_rare_demonstrated_tokens_learn_most_per_log_prob():
    """d/dlog p of p / (p + g) is p g / (p + g)^2: largest at p = g, where it is 1/4."""
    new = tensor([0.1, 0.9], [0.001, 1.0]).log().requires_grad_()
    everything = torch.ones(2, 2, dtype=torch.bool)
    shown(new, torch.ones(2, dtype=torch.float64), everything, OLD, ["data", "data"])[0].sum().backward()
    assert new.grad.flatten().tolist() == pytest.approx([-0.25, -0.09, -0.0001 / 0.101**2, -0.1 / 1.21])


def test_one_of_each_group_is_a_demonstration():
    plan = METHOD.plan_rollouts(prompts=[{}], group_size=8, config=METHOD.config({}), state={}, random=None)
    assert [(ask.samples, ask.source) for ask in plan[0]] == [(7, "policy"), (1, "data")]


def test_advantages_by_hand(advantages_of):
    assert advantages_of([1, 0, 1], [0, 0, 0])[0].tolist() == pytest.approx([1 / 3, -2 / 3, 1 / 3])

import math
from types import SimpleNamespace

import pytest
import torch
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import call_loss, method_beside, tensor

METHOD = method_beside(__file__)
D = torch.float64


def loss_of(new, columns, statistics=None, mask=None, **options):
    mask = torch.ones_like(new, dtype=torch.bool) if mask is None else mask
    found = {"entropy": torch.ones_like(new)} | (statistics or {})
    return call_loss(METHOD, Views(completion=View(new, mask, **found)), columns=columns, **options)


def worked_out(old, sampled, teacher, rewards=(0.0, 0.0), **options):
    old, sampled, teacher = (torch.tensor(values, dtype=D) for values in (old, sampled, teacher))
    rollouts = SimpleNamespace(
        group=torch.tensor([0, 0]), mask=torch.tensor([[True, True], [True, False]]), old_logps=old,
        sampled_logps=sampled, teacher_logps=teacher,
    )  # fmt: skip
    config = METHOD.config({"advantage_epsilon": 0.0} | options)
    return METHOD.advantages(rewards=torch.tensor(rewards, dtype=D), rollouts=rollouts, config=config, state={})


OLD, TEACHER = [[-1.0, -2.0], [-1.0, 5.0]], [[-0.5, -3.0], [-1.25, 9.0]]


def test_the_gate():
    """Ratios 1, 6 (outside) and 0.6; the padding counts nothing."""
    sampled = [[-1.0, -2.0 - math.log(6)], [-1.0 - math.log(0.6), 0.0]]
    found = worked_out(OLD, sampled, TEACHER)
    assert found["weights"].flatten().tolist() == pytest.approx([1, 0, 0.6, 0])
    assert found["advantages"].flatten().tolist() == pytest.approx([0.5, -1, -0.25, 0])


def test_the_outcome_is_added():
    """Rewards 1 and 0: advantages of sqrt(1/2), half of it."""
    found = worked_out(OLD, OLD, TEACHER, (1.0, 0.0), orm_alpha=0.5)["advantages"]
    half = math.sqrt(0.5) / 2
    assert found.flatten().tolist() == pytest.approx([0.5 + half, -1 + half, -0.25 - half, 0])


def test_loss_by_hand():
    new = torch.tensor([[-1.0, -2.0]], dtype=D, requires_grad=True)
    columns = {
        "advantages": tensor([0.5, -1.0]),
        "weights": tensor([2.0, 0.0]),
        "teacher_logps": new.detach(),
    }
    loss, metrics = loss_of(new, columns)
    assert loss.values[0].tolist() == [1, 0]
    loss.values.sum().backward()
    assert new.grad[0].tolist() == [-1, 0]
    assert metrics["gated"].values[0].tolist() == [0, 1]

import math

import pytest
import torch
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH


def test_advantages_by_hand(advantages_of):
    """Rewards 1 and 0 of 1 and 3 tokens: baseline 1/4. Equal rewards are worth nothing."""
    mask = torch.tensor([[True, False, False], [True, True, True], [True, True, False], [True, False, False]])
    found, columns = advantages_of([1, 0, 0.1, 0.1], [0, 0, 1, 1], mask)
    assert found.tolist() == pytest.approx([0.75, -0.25, 0, 0], abs=1e-12)
    assert columns["baseline"].tolist() == pytest.approx([0.25, 0.25, 0.1, 0.1])
    plain, _ = advantages_of([1, 0, 0.1, 0.1], [0, 0, 1, 1], mask, {"length_weighted": False})
    assert plain.tolist() == pytest.approx([0.5, -0.5, 0, 0], abs=1e-12)


def test_the_weighted_sum_is_zero(advantages_of):
    mask = torch.tensor([[True, False, False], [True, True, True], [True, True, False]])
    found, _ = advantages_of([0.3, -1.7, 2.2], [0, 0, 0], mask)
    assert float((found * mask.sum(-1)).sum()) == pytest.approx(0, abs=1e-12)


def test_loss_is_the_plain_policy_gradient(completion_loss):
    """-A log p, whatever the ratio."""
    loss, _ = completion_loss(NEW, WORTH, MASK, OLD, baseline=WORTH)
    assert loss.tolist() == pytest.approx([2.0, -2 * (-2 + math.log(1.5)), -0.5 - math.log(2)])

import math

import pytest
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH


def test_loss_by_hand(completion_loss):
    """Weights 1 and 3/2 (cut to 1.2), and 1/2: -1 * 2 * log 1 = 0, -1.2 * 2 * (-2 + log 1.5), 0.5 * log p."""
    loss, metrics = completion_loss(NEW, WORTH, MASK, OLD, {"ratio_cap": 1.2})
    rare = -2 + math.log(1.5)
    assert loss.tolist() == pytest.approx([2.0, -2.4 * rare, 0.5 * (-0.5 - math.log(2))])
    assert metrics["capped"].values[MASK].tolist() == [0, 1, 0]


def test_a_capped_token_keeps_its_gradient(completion_loss):
    new = NEW.clone().requires_grad_()
    completion_loss(new, WORTH, MASK, OLD, {"ratio_cap": 1.2})[0].sum().backward()
    assert new.grad.flatten().tolist() == pytest.approx([-2, -2.4, 0.5, 0])


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)


def test_first_update_is_the_policy_gradient(completion_loss):
    """With old equal to new the gradient by each log-prob is -A."""
    new = OLD.clone().requires_grad_()
    completion_loss(new, WORTH, MASK, OLD)[0].sum().backward()
    assert new.grad.tolist() == [[-2, -2], [1, 0]]

import math

import pytest
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH


def test_loss_and_gradient_by_hand(completion_loss):
    """Ratios 1, 3/2 (bound 1.28) and 1/2 (0.5 * 0.8): the gradient by a log-prob is the value itself."""
    new = NEW.clone().requires_grad_()
    loss, _ = completion_loss(new, WORTH, MASK, OLD)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([-2, -2.56, 0.4])
    assert new.grad.flatten().tolist() == pytest.approx([-2, -2.56, 0.4, 0])


def test_what_pulls_back_is_not_bounded(completion_loss):
    """A bad token at a ratio of 4 costs 4."""
    assert completion_loss(OLD + math.log(4), WORTH, MASK, OLD)[0][2].item() == pytest.approx(4)


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)


def test_first_update_is_the_policy_gradient(completion_loss):
    """With old equal to new the gradient by each log-prob is -A."""
    new = OLD.clone().requires_grad_()
    completion_loss(new, WORTH, MASK, OLD)[0].sum().backward()
    assert new.grad.tolist() == [[-2, -2], [1, 0]]

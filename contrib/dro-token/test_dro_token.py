import math

import pytest
from posttrain.errors import SettingsError
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH


def test_loss_by_hand(completion_loss):
    """Log-ratios 0, log 1.5 and -log 2 with beta 0.1: -A log p plus 0.05 times their squares."""
    loss, _ = completion_loss(NEW, WORTH, MASK, OLD, {"beta": 0.1})
    second = -2 * (-2 + math.log(1.5)) + 0.05 * math.log(1.5) ** 2
    assert loss.tolist() == pytest.approx([2.0, second, -0.5 - math.log(2) + 0.05 * math.log(2) ** 2])


def test_a_penalty_of_nothing_is_refused(method):
    with pytest.raises(SettingsError, match=r"beta is 0\.0, expected a number above 0"):
        method.config({"beta": 0.0})


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)


def test_first_update_is_the_policy_gradient(completion_loss):
    """With old equal to new the gradient by each log-prob is -A."""
    new = OLD.clone().requires_grad_()
    completion_loss(new, WORTH, MASK, OLD)[0].sum().backward()
    assert new.grad.tolist() == [[-2, -2], [1, 0]]

import math

import pytest
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, tensor


def test_loss_by_hand(completion_loss):
    """At a ratio of 1 the gate is 1/2: -2 * 4 / 2 = -4. At 3/2: -8 sigmoid(1/2). At 1/2: 4/1.05 sigmoid(-1.05/2)."""
    loss, _ = completion_loss(NEW, WORTH, MASK, OLD)
    high, low = 1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(0.525))
    assert loss.tolist() == pytest.approx([(-4 - 8 * high) / 2, 4 / 1.05 * low])


def test_slope_falls_with_the_distance_and_sooner_for_bad_completions(completion_loss):
    new = (OLD + math.log(3)).requires_grad_()
    completion_loss(new, tensor(1.0, -1.0), MASK, OLD)[0].sum().backward()
    good, bad = 2 * abs(float(new.grad[0, 0])) / 3, abs(float(new.grad[1, 0])) / 3  # by the ratio, which is 3
    gate = 1 / (1 + math.exp(-2.0))
    assert good == pytest.approx(4 * gate * (1 - gate))
    assert bad < good < 1


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)


def test_first_update_is_the_policy_gradient(completion_loss):
    """With old equal to new the gradient by each log-prob is -A / length."""
    new = OLD.clone().requires_grad_()
    completion_loss(new, WORTH, MASK, OLD)[0].sum().backward()
    assert new.grad.tolist() == [[-1, -1], [1, 0]]

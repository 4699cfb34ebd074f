import math

import pytest
from posttrain.errors import SettingsError
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH


def test_loss_by_hand(completion_loss):
    """-(2 * 1 + 2 * 1.2) / 2 and 0.8, as in PPO; a bad token at a ratio of 5 costs 3 and has no gradient."""
    assert completion_loss(NEW, WORTH, MASK, OLD)[0].tolist() == pytest.approx([-2.2, 0.8])
    new = (OLD + math.log(5)).requires_grad_()
    loss, metrics = completion_loss(new, WORTH, MASK, OLD)
    loss[1].backward()
    assert (loss[1].item(), new.grad[1, 0].item()) == (pytest.approx(3), 0)
    assert metrics["clip_dual"].values[MASK].tolist() == [0, 0, 1]


def test_a_bound_below_one_is_refused(method):
    with pytest.raises(SettingsError, match=r"c is 0\.5, expected a number above 1"):
        method.config({"c": 0.5})


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)


def test_first_update_is_the_policy_gradient(completion_loss):
    """With old equal to new the gradient by each log-prob is -A / length."""
    new = OLD.clone().requires_grad_()
    completion_loss(new, WORTH, MASK, OLD)[0].sum().backward()
    assert new.grad.tolist() == [[-1, -1], [1, 0]]

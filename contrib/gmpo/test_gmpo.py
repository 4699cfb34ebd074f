import math

import pytest
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, tensor


def test_loss_by_hand(completion_loss):
    """Log-ratios 0 and ln 1.5 = 0.405, held at 0.4: -2 e^0.2 = -2.442806. -ln 2 is held at -0.4: e^-0.4 = 0.670320."""
    loss, metrics = completion_loss(NEW, WORTH, MASK, OLD)
    assert loss.tolist() == pytest.approx([-2.442806, 0.670320], abs=1e-6)
    assert metrics["clip_low"].values[MASK].tolist() == [0, 0, 1]
    assert metrics["clip_high"].values[MASK].tolist() == [0, 1, 0]


def test_one_outlier_of_two_tokens_is_clipped_alone(completion_loss):
    """Log-ratios 0.1 and 5: the mean of 0.1 and 0.4 is 0.25, and the outlier has no gradient."""
    new = (OLD + tensor([0.1, 5.0], [0.0, 0.0])).requires_grad_()
    loss, _ = completion_loss(new, WORTH, MASK, OLD)
    loss[0].backward()
    assert loss[0].item() == pytest.approx(-2 * math.exp(0.25))
    assert new.grad[0].tolist() == pytest.approx([-math.exp(0.25), 0])


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)


def test_first_update_is_the_policy_gradient(completion_loss):
    """With old equal to new the gradient by each log-prob is -A / length."""
    new = OLD.clone().requires_grad_()
    completion_loss(new, WORTH, MASK, OLD)[0].sum().backward()
    assert new.grad.tolist() == [[-1, -1], [1, 0]]

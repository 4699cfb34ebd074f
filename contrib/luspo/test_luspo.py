import pytest
from posttrain_testkit.by_hand import MASK, OLD, WORTH, tensor


def test_loss_by_hand(completion_loss):
    """Mean log-ratio 0.001: 1.0010005 lies below 1.0025, times two tokens: -4.004002. -0.01 is clipped to 0.998."""
    loss, metrics = completion_loss(OLD + tensor([0.003, -0.001], [-0.01, 0.0]), WORTH, MASK, OLD)
    assert loss.tolist() == pytest.approx([-4.004002, 0.998], abs=1e-6)
    assert metrics["clip_low"].tolist() == [0, 1]


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)


def test_first_update_is_the_policy_gradient(completion_loss):
    """With old equal to new the gradient by each log-prob is -A."""
    new = OLD.clone().requires_grad_()
    completion_loss(new, WORTH, MASK, OLD)[0].sum().backward()
    assert new.grad.tolist() == [[-2, -2], [1, 0]]

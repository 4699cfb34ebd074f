import pytest
from posttrain_testkit.by_hand import MASK, OLD, WORTH, tensor


def test_loss_by_hand(completion_loss):
    """Mean log-ratio 0.0003: 1.00030005 lies below 1.0004, so -2.0006001. One of -0.001 is clipped to 0.9997."""
    new = OLD + tensor([0.001, -0.0004], [-0.001, 0.0])
    loss, _ = completion_loss(new, WORTH, MASK, OLD)
    assert loss.tolist() == pytest.approx([-2.0006001, 0.9997], abs=1e-7)


def test_advantages_per_token_weigh_their_own_gradients(completion_loss):
    new = OLD.clone().requires_grad_()
    completion_loss(new, tensor([1.0, 3.0], [5.0, 0.0]), MASK, OLD)[0].sum().backward()
    assert new.grad.flatten().tolist() == [-0.5, -1.5, -5, 0]


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)


def test_first_update_is_the_policy_gradient(completion_loss):
    """With old equal to new the gradient by each log-prob is -A / length."""
    new = OLD.clone().requires_grad_()
    completion_loss(new, WORTH, MASK, OLD)[0].sum().backward()
    assert new.grad.tolist() == [[-1, -1], [1, 0]]

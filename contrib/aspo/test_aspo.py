import pytest
import torch
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, tensor


def test_loss_by_hand(completion_loss):
    """Good: ratio 1 gives -2, 3/2 is held at 1.2 and weighs 1/1.2. Bad: 1/2 is held at 0.8."""
    loss, _ = completion_loss(NEW, WORTH, MASK, OLD)
    assert loss.tolist() == pytest.approx([-2, -2 / 1.2, 0.8])


def test_gradients_of_the_four_cases(completion_loss):
    """Good tokens at ratios 0.9 (weight 1/0.9) and 0.1 (cut to 3); bad ones at 1.5 (itself) and 9 (cut to 3)."""
    ratios = tensor([0.9, 0.1], [1.5, 9.0])
    new = (OLD + ratios.log()).requires_grad_()
    everything = torch.ones(2, 2, dtype=torch.bool)
    completion_loss(new, tensor(1.0, -1.0), everything, OLD)[0].sum().backward()
    assert new.grad.flatten().tolist() == pytest.approx([-1 / 0.9, -3, 1.5, 3])


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)


def test_first_update_is_the_policy_gradient(completion_loss):
    """With old equal to new the gradient by each log-prob is -A."""
    new = OLD.clone().requires_grad_()
    completion_loss(new, WORTH, MASK, OLD)[0].sum().backward()
    assert new.grad.tolist() == [[-2, -2], [1, 0]]

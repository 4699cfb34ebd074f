import pytest
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, tensor


def test_loss_by_hand(completion_loss):
    """Ratios 1, 3/2, 1/2: -2, -3 + 2 / 0.4 * 0.25 = -1.75, and 0.5 + 0.25 / 0.4 = 1.125."""
    assert completion_loss(NEW, WORTH, MASK, OLD)[0].tolist() == pytest.approx([-2, -1.75, 1.125])


def test_the_best_ratio_lies_at_the_bound(completion_loss):
    """At 1.2 for a good token and 0.8 for a bad one the gradient is 0; beyond, it pulls back."""
    ratios = tensor([1.2, 1.3], [0.8, 1.0])
    new = (OLD + ratios.log()).requires_grad_()
    completion_loss(new, WORTH, MASK, OLD)[0].sum().backward()
    assert new.grad.flatten().tolist() == pytest.approx([0, 1.3, 0, 0], abs=1e-12)


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)


def test_first_update_is_the_policy_gradient(completion_loss):
    """With old equal to new the gradient by each log-prob is -A."""
    new = OLD.clone().requires_grad_()
    completion_loss(new, WORTH, MASK, OLD)[0].sum().backward()
    assert new.grad.tolist() == [[-2, -2], [1, 0]]

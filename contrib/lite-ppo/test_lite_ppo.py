import pytest
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH


def test_advantages_by_hand(advantages_of):
    """Three ones and three zeros: deviation sqrt(6 * 0.25 / 5) = 0.547723, and 1/3 of that is 0.608581."""
    found, _ = advantages_of([1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 1, 1])
    assert found.tolist() == pytest.approx([0.608580, -1.217159, 0.608580, -0.608580, -0.608580, 1.217159], abs=1e-6)
    assert advantages_of([0.1, 0.1, 0.1], [0, 0, 0])[0].tolist() == [0, 0, 0]


def test_a_group_that_nearly_agrees_is_not_blown_up(advantages_of):
    """Rewards 0.5 and 0.51 beside 0 and 1: a hundredth of the others' advantages."""
    found, _ = advantages_of([0.5, 0.51, 0, 1], [0, 0, 1, 1])
    assert float(found[1] / found[3]) == pytest.approx(0.01)


def test_loss_is_clipped_and_averaged_over_tokens(completion_loss):
    """Ratios 1, 3/2 and 1/2 under advantages 2 and -1: -2, -2 * 1.2 and 0.8."""
    assert completion_loss(NEW, WORTH, MASK, OLD)[0].tolist() == pytest.approx([-2, -2.4, 0.8])


def test_first_update_is_the_policy_gradient(completion_loss):
    """With old equal to new the gradient by each log-prob is -A."""
    new = OLD.clone().requires_grad_()
    completion_loss(new, WORTH, MASK, OLD)[0].sum().backward()
    assert new.grad.tolist() == [[-2, -2], [1, 0]]

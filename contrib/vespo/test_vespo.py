import pytest
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH


def test_loss_by_hand(completion_loss):
    """W = 3/2 for two tokens of the good one: 2.25 e^-1.5 = 0.502043. W = 1/2 for the bad one: 0.125 e = 0.339785."""
    loss, metrics = completion_loss(NEW, WORTH, MASK, OLD)
    weights = metrics["weight"].values[MASK].tolist()
    assert weights == pytest.approx([0.502043, 0.502043, 0.339785], abs=1e-6)
    assert loss[0].item() == pytest.approx(-0.502043 * 2 * float(NEW[0, 0]), abs=1e-6)
    assert loss[2].item() == pytest.approx(0.339785 * float(NEW[1, 0]), abs=1e-6)


def test_completions_far_from_their_sampler_hardly_count(completion_loss):
    for far in (5.0, -5.0):
        _, metrics = completion_loss(OLD + far, WORTH, MASK, OLD)
        assert float(metrics["weight"].values[MASK].max()) < 1e-3


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)


def test_first_update_is_the_policy_gradient(completion_loss):
    """With old equal to new the gradient by each log-prob is -A."""
    new = OLD.clone().requires_grad_()
    completion_loss(new, WORTH, MASK, OLD)[0].sum().backward()
    assert new.grad.tolist() == [[-2, -2], [1, 0]]

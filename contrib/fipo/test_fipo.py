import math

import pytest
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH


def test_weights_by_hand(completion_loss):
    """Log-ratios 0 and ln 1.5, half counted a token later: sqrt 1.5 and 1.5, within 1 and 2. The bad one: 1/2 -> 1."""
    options = {"decay_rate": 1.0, "clip_range": 1.0}
    loss, metrics = completion_loss(NEW, WORTH, MASK, OLD, options)
    assert metrics["weight"].values[MASK].tolist() == pytest.approx([1.5**0.5, 1.5, 1])
    assert loss.tolist() == pytest.approx([-2 * 1.5**0.5, -2 * 1.28 * 1.5, 0.8])
    _, metrics = completion_loss(NEW, WORTH, MASK, OLD, options | {"clip_high_only": False})
    assert metrics["weight"].values[1, 0].item() == pytest.approx(0.5)


def test_a_runaway_bad_token_does_not_grow(completion_loss):
    """Ratio 5 on a bad token: the weight would be 1.2."""
    _, metrics = completion_loss(OLD + math.log(5), WORTH, MASK, OLD)
    assert metrics["weight"].values[MASK].tolist() == pytest.approx([1.2, 1.2, 1])


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)


def test_first_update_is_the_policy_gradient(completion_loss):
    """With old equal to new the gradient by each log-prob is -A."""
    new = OLD.clone().requires_grad_()
    completion_loss(new, WORTH, MASK, OLD)[0].sum().backward()
    assert new.grad.tolist() == [[-2, -2], [1, 0]]

import math

import pytest
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH


def test_loss_by_hand(completion_loss):
    """Ratios 1, 3/2 and 1/2 to the generator: the last two are out of range, and have no gradient."""
    new = NEW.clone().requires_grad_()
    loss, metrics = completion_loss(new, WORTH, MASK, NEW, sampled_logps=OLD)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([-2 * float(NEW[0, 0]), 0, 0])
    assert new.grad.flatten().tolist() == pytest.approx([-2, 0, 0, 0])
    assert metrics["left_out"].values[MASK].tolist() == [0, 1, 1]


def test_within_the_range_the_ratio_is_the_weight(completion_loss):
    loss, _ = completion_loss(NEW, WORTH, MASK, NEW, {"epsilon_low": 0.6, "epsilon_high": 0.6}, sampled_logps=OLD)
    expected = [2.0, -3.0 * (-2 + math.log(1.5)), 0.5 * (-0.5 - math.log(2))]
    assert loss.tolist() == pytest.approx(expected)


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)

import math

import pytest
from posttrain_testkit.by_hand import MASK, WORTH, tensor


def test_loss_by_hand(completion_loss):
    """0.5 rises to 0.8 and is left out, 0.1 to 0.2 stays; 0.6 falls to 0.3 and is left out."""
    then, now = tensor([0.5, 0.1], [0.6, 1.0]).log(), tensor([0.8, 0.2], [0.3, 1.0]).log()
    loss, metrics = completion_loss(now, WORTH, MASK, now, {"kl_tau": 0.1}, sampled_logps=then)
    squares = [0.1 * math.log(1.6) ** 2, 0.1 * math.log(2) ** 2, 0.1 * math.log(2) ** 2]
    assert loss.tolist() == pytest.approx([squares[0], squares[1] - 4, squares[2]])
    assert metrics["left_out"].values[MASK].tolist() == [1, 0, 1]


def test_either_way(completion_loss):
    """A good token that fell from 0.6 to 0.3 is kept, unless the mask is symmetric."""
    then, now = tensor([0.6, 1.0], [0.5, 1.0]).log(), tensor([0.3, 1.0], [0.5, 1.0]).log()
    kept, _ = completion_loss(now, WORTH, MASK, now, {"kl_tau": 0.0}, sampled_logps=then)
    assert kept.tolist() == pytest.approx([-1, -2, 1])
    left, _ = completion_loss(now, WORTH, MASK, now, {"kl_tau": 0.0, "symmetric": True}, sampled_logps=then)
    assert left.tolist() == pytest.approx([0, -2, 1])


def test_advantages_by_hand(advantages_of):
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([1 / 3, -2 / 3, 1 / 3, 0, 0, 0])

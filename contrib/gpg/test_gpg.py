import math

import pytest
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH


def test_advantages_by_hand(advantages_of):
    """Four of six completions are in groups that disagree: alpha 1.5."""
    found, columns = advantages_of([1, 0, 0.1, 0.1, 3, 1], [0, 0, 1, 1, 2, 2])
    assert found.tolist() == pytest.approx([0.75, -0.75, 0, 0, 1.5, -1.5])
    assert columns["alpha"].tolist() == [1.5] * 6
    assert advantages_of([0.1, 0.1], [0, 0])[0].tolist() == [0, 0]


def test_loss_is_the_plain_policy_gradient(completion_loss):
    """-A log p, whatever the ratio."""
    loss, _ = completion_loss(NEW, WORTH, MASK, OLD, alpha=WORTH)
    assert loss.tolist() == pytest.approx([2.0, -2 * (-2 + math.log(1.5)), -0.5 - math.log(2)])

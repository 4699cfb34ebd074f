import math

import pytest
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH


def test_advantages_by_hand(advantages_of):
    found, _ = advantages_of([1, 0, -1, math.nan], [0, 0, 1, 1])
    assert found.tolist() == pytest.approx([0.1, -1, -1, 0])
    positive, _ = advantages_of([1, 0], [0, 0], options={"positive_weight": 1.0, "negative_weight": 0.0})
    negative, _ = advantages_of([1, 0], [0, 0], options={"positive_weight": 0.0})
    assert (positive.tolist(), negative.tolist()) == ([1, 0], [0, -1])


def test_loss_is_clipped_and_averaged_over_tokens(completion_loss):
    """Ratios 1, 3/2 and 1/2 under advantages 2 and -1: -2, -2 * 1.2 and 0.8."""
    assert completion_loss(NEW, WORTH, MASK, OLD, correct=WORTH)[0].tolist() == pytest.approx([-2, -2.4, 0.8])

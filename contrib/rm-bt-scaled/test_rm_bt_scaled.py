import math

import pytest


def test_by_hand(loss_of):
    """Differences ln 3 and 0 with strengths 2 and 1: (2 ln(4/3) + ln 2) / 2."""
    inputs = {"reward_chosen": [math.log(3), 0.5], "reward_rejected": [0.0, 0.5], "strength": [2.0, 1.0]}
    found = loss_of(inputs)
    assert found.loss == pytest.approx((2 * math.log(4 / 3) + math.log(2)) / 2)
    assert found.gradients["reward_chosen"] == pytest.approx([-0.25, -0.25])
    del inputs["strength"]
    assert loss_of(inputs).loss == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)

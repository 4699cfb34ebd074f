import math

import pytest


def test_by_hand(loss_of):
    """p = 3/4: the factor is (1 - 1/2)^2 = 1/4. p = 1/4: the factor is 1."""
    inputs = {"reward_chosen": [math.log(3), 0.0], "reward_rejected": [0.0, math.log(3)]}
    assert loss_of(inputs).loss == pytest.approx((math.log(4 / 3) / 4 + math.log(4)) / 2)
    assert loss_of(inputs, gamma=0.0).loss == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)


def test_the_barrier_holds_scores_back(loss_of):
    inputs = {"reward_chosen": [4.0], "reward_rejected": [4.0]}
    found = loss_of(inputs, gamma=0.0, barrier=1.0)
    assert found.loss == pytest.approx(math.log(2) - 2 * (math.log(9) + math.log(1)))
    assert found.gradients["reward_chosen"] == pytest.approx([-0.5 - 1 / 9 + 1])

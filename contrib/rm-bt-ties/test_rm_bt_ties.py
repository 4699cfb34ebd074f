import math

import pytest


@pytest.mark.parametrize("distance", [-1.5, 0.0, 0.7])
def test_win_tie_and_loss_sum_to_one(loss_of, distance):
    def probability(first, second, tie):
        inputs = {"reward_chosen": [first], "reward_rejected": [second], "tie": [tie]}
        return math.exp(-loss_of(inputs, theta=3.0).loss)

    win, loss = probability(distance, 0.0, False), probability(0.0, distance, False)
    assert win + loss + probability(distance, 0.0, True) == pytest.approx(1)


def test_by_hand(loss_of):
    """Equal scores, theta 3: a tie with probability 1/2, a win with 1/4. Without the column every pair is strict."""
    inputs = {"reward_chosen": [0.5, 0.5], "reward_rejected": [0.5, 0.5], "tie": [True, False]}
    assert loss_of(inputs, theta=3.0).loss == pytest.approx((math.log(2) + math.log(4)) / 2)
    del inputs["tie"]
    assert loss_of(inputs, theta=3.0).loss == pytest.approx(math.log(4))

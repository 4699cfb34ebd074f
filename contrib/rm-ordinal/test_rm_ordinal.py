import math

import pytest


def test_by_hand(loss_of):
    """sigmoid(d) = 3/4 where people are three to one: the entropy of that, and no gradient left."""
    inputs = {"reward_chosen": [math.log(3)], "reward_rejected": [0.0], "level": [0.75]}
    found = loss_of(inputs)
    assert found.loss == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert found.gradients["reward_chosen"] == pytest.approx([0], abs=1e-12)
    del inputs["level"]
    assert loss_of(inputs).loss == pytest.approx(math.log(4 / 3))

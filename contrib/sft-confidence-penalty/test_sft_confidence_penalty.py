import math

import pytest


def test_by_hand(loss_of):
    """Policy (3/4, 1/4): H = 0.562335; dH/dz_i = -p_i (log p_i + H)."""
    found = loss_of({"logits": [[math.log(3.0), 0.0]], "labels": [0]}, beta=0.5)
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert found.loss == pytest.approx(-math.log(0.75) - 0.5 * entropy)
    slope = 0.5 * 0.75 * (math.log(0.75) + entropy)
    assert found.gradients["logits"][0][0] == pytest.approx([-0.25 + slope, 0.25 - slope])

import math

import pytest


def test_by_hand(loss_of):
    """p = 1/2, gamma 2: ln 2 / 4. By log p: -(1 - p)^2 + 2 p (1 - p) log p = -1/4 - ln 2 / 2."""
    found = loss_of({"policy_tok": [[math.log(0.5)]]})
    assert found.loss == pytest.approx(math.log(2) / 4)
    assert found.gradients["policy_tok"][0] == pytest.approx([-0.25 - math.log(2) / 2])
    assert loss_of({"policy_tok": [[-3.0, -1.0]]}, gamma=0.0).loss == pytest.approx(2)

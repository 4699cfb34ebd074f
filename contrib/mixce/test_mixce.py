import math

import pytest


def test_by_hand(loss_of):
    """p = 1/2, eta = 1/4: the factor is 1/4 + 3/8 = 5/8."""
    found = loss_of({"policy_tok": [[math.log(0.5)]]}, eta=0.25)
    assert found.loss == pytest.approx(0.625 * math.log(2))
    assert found.gradients["policy_tok"][0] == pytest.approx([-0.625])

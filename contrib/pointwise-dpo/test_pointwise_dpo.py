import math

import pytest


def test_by_hand(loss_of):
    """rho ln 3 and beta 1: -ln(3/4) for a good answer, -ln(1/4) for a bad one."""
    inputs = {"policy_logp": [-1.0, -2.0], "ref_logp": [-1.0 - math.log(3), -2.0 - math.log(3)], "label": [True, False]}
    found = loss_of(inputs, beta=1.0)
    assert found.loss == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    assert found.gradients["policy_logp"] == pytest.approx([-1 / 8, 3 / 8])

import math

import pytest


def test_by_hand(loss_of):
    """beta rho = ln 3: -ln(3/4) for a right solution, -ln(1/4) for a wrong one."""
    lift = math.log(3) / 0.05
    inputs = {"policy_logp": [-1.0, -2.0], "ref_logp": [-1.0 - lift, -2.0 - lift], "label": [True, False]}
    found = loss_of(inputs)
    assert found.loss == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    assert found.gradients["policy_logp"] == pytest.approx([-0.05 / 8, 0.15 / 8])

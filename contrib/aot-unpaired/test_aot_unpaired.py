import math

import pytest


def test_by_hand(loss_of):
    """Good 3 and 0, bad 1 and 2: by rank 0 - 1 and 3 - 2. beta 1: ln(1 + e) and ln(1 + 1/e), and the pairs' slopes."""
    inputs = {"policy_logp": [3.0, 1.0, 0.0, 2.0], "ref_logp": [0.0] * 4, "label": [True, False, True, False]}
    found = loss_of(inputs, beta=1.0)
    assert found.loss == pytest.approx((math.log(1 + math.e) + math.log(1 + 1 / math.e)) / 2)
    steep, flat = 1 / (1 + math.exp(-1)) / 2, 1 / (1 + math.e) / 2
    assert found.gradients["policy_logp"] == pytest.approx([-flat, steep, -steep, flat])


def test_a_step_of_one_kind_costs_nothing(loss_of):
    found = loss_of({"policy_logp": [3.0, 1.0], "ref_logp": [0.0, 0.0], "label": [True, True]})
    assert found.loss == 0
    assert found.gradients["policy_logp"] == [0, 0]

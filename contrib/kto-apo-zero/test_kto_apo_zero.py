import math

import pytest


def test_by_hand(loss_of):
    """rho ln 3 and beta 1: sigmoid 3/4. Good 1/4, bad twice 3/4; slope p (1 - p) = 3/16."""
    inputs = {"policy_logp": [-1.0, -2.0], "ref_logp": [-1.0 - math.log(3), -2.0 - math.log(3)], "label": [True, False]}
    found = loss_of(inputs, beta=1.0, undesirable_weight=2.0)
    assert found.loss == pytest.approx((0.25 + 1.5) / 2)
    assert found.gradients["policy_logp"] == pytest.approx([-3 / 32, 6 / 32])


def test_at_the_reference_every_answer_costs_one_half(loss_of):
    inputs = {"policy_logp": [-1.0, -2.0], "ref_logp": [-1.0, -2.0], "label": [True, False]}
    assert loss_of(inputs).loss == 0.5

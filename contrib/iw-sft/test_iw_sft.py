import math

import pytest


def test_by_hand(loss_of):
    """Mean log-ratio 1 over two tokens: weight e. The other row equals its reference: weight 1. Three tokens in all."""
    inputs = {"policy_tok": [[-1.0, -2.0], [-3.0]], "ref_tok": [[-2.0, -3.0], [-3.0]]}
    found = loss_of(inputs)
    assert found.loss == pytest.approx((3 * math.e + 3) / 3)
    assert found.gradients["policy_tok"][0] == pytest.approx([-math.e / 3] * 2)
    assert loss_of(inputs, largest_weight=2.0).loss == pytest.approx(3)
    assert loss_of(inputs, sharpness=0.0).loss == pytest.approx(2)

import math

import pytest


def test_by_hand(loss_of):
    """rho of the alternative 0.5, of the forgotten answer 2.5, beta 1: 2 ln(1 + e^2) = 4.253856."""
    inputs = {
        "forget_logp": [-1.5],
        "forget_ref_logp": [-4.0],
        "alternative_logp": [-3.5],
        "alternative_ref_logp": [-4.0],
        "retain_tok": [[-2.0, -4.0]],
    }
    found = loss_of(inputs, beta=1.0)
    assert found.loss == pytest.approx(2 * math.log(1 + math.exp(2)) + 3)
    assert found.metrics["margin"].tolist() == [pytest.approx(-2)]
    assert found.gradients["forget_logp"] == pytest.approx([2 / (1 + math.exp(-2))])

import math

import pytest


def inputs(ratio):
    return {"forget_logp": [-4.0 + ratio], "forget_ref_logp": [-4.0], "forget_len": [3], "retain_tok": [[-1.0, -2.0]]}


def test_by_hand(loss_of):
    """rho = 2, beta = 0.5: 4 ln(1 + e^1) = 5.253047; retain 0.5 * 1.5. Slope: 2 sigmoid(beta rho) = 1.462117."""
    found = loss_of(inputs(2.0), beta=0.5, retain_weight=0.5)
    assert found.loss == pytest.approx(4 * math.log(1 + math.e) + 0.75)
    assert found.gradients["forget_logp"] == pytest.approx([2 / (1 + math.exp(-1))])


def test_small_beta_is_gradient_ascent(loss_of):
    """Less the constant (2 / beta) ln 2, the term tends to rho itself."""
    found = loss_of(inputs(1.5), beta=1e-5, retain_weight=0.0)
    assert found.loss - 2e5 * math.log(2) == pytest.approx(1.5, abs=1e-4)

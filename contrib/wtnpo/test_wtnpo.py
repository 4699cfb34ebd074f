import math

import pytest


def test_by_hand(loss_of):
    """p = q = 1/2, beta 1, alpha_w 2: 2 (1/2)^3 / (1/2 + 1/2) = 1/4."""
    half = math.log(0.5)
    inputs = {"forget_tok": [[half]], "forget_ref_tok": [[half]], "retain_tok": [[-1.0, -2.0]]}
    found = loss_of(inputs, beta=1.0, alpha_w=2.0)
    assert found.loss == pytest.approx(half / 4 + 1.5, abs=1e-4)
    assert found.gradients["forget_tok"][0] == pytest.approx([0.25], abs=1e-4)


def test_the_authors_powers(loss_of):
    """beta 4, alpha_w 1.5, p = q = 1/4: 2 / 4^5.5 / (2 / 4^4 + 1e-5) = 2^-11 * 2 / (2^-7 + 1e-5)."""
    quarter = math.log(0.25)
    found = loss_of({"forget_tok": [[quarter]], "forget_ref_tok": [[quarter]]}, retain_weight=0.0)
    assert found.loss == pytest.approx(quarter * 2**-10 / (2**-7 + 1e-5), rel=1e-6)

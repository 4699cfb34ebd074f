import math

import pytest


def test_by_hand(loss_of):
    """Probabilities 1/2 and 1/4 squared weigh 1/4 and 1/16, over two tokens; the weights have no gradient."""
    inputs = {"forget_tok": [[math.log(0.5), math.log(0.25)]], "retain_tok": [[-1.0]]}
    found = loss_of(inputs, beta=2.0, retain_weight=3.0)
    assert found.loss == pytest.approx((0.25 * math.log(0.5) + 0.0625 * math.log(0.25)) / 2 + 3)
    assert found.gradients["forget_tok"][0] == pytest.approx([0.125, 0.03125])


def test_beta_zero_is_gradient_ascent(loss_of):
    found = loss_of({"forget_tok": [[-1.0, -5.0]], "retain_tok": [[-1.0]]}, beta=0.0, retain_weight=0.0)
    assert found.loss == pytest.approx(-3)

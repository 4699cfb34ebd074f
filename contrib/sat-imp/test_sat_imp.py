import math

import pytest


def test_by_hand(loss_of):
    """p = 1/2 with powers 2 and 1: 1/8. p = 1/4: 3/64."""
    inputs = {"forget_tok": [[math.log(0.5), math.log(0.25)]], "retain_tok": [[-1.0]]}
    found = loss_of(inputs, saturation=2.0, forget_weight=1.0, retain_weight=0.0)
    assert found.loss == pytest.approx((math.log(0.5) / 8 + 3 / 64 * math.log(0.25)) / 2)
    assert found.gradients["forget_tok"][0] == pytest.approx([1 / 16, 3 / 128])


def test_without_powers_it_is_gradient_ascent(loss_of):
    inputs = {"forget_tok": [[-1.0, -5.0]], "retain_tok": [[-1.0]]}
    options = {"saturation": 0.0, "importance": 0.0, "forget_weight": 1.0, "retain_weight": 0.0}
    assert loss_of(inputs, **options).loss == pytest.approx(-3)

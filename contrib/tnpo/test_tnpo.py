import math

import pytest


def test_by_hand(loss_of):
    """p = 1/2, q = 1/4: w = 4/3. p = q: w = 1. Each has half of the step; the weights have no gradient."""
    tokens, reference = [math.log(0.5), -2.0], [math.log(0.25), -2.0]
    found = loss_of({"forget_tok": [tokens], "forget_ref_tok": [reference], "retain_tok": [[-1.5]]}, beta=1.0)
    assert found.loss == pytest.approx((4 / 3 * math.log(0.5) - 2) / 2 + 1.5, abs=1e-4)
    assert found.gradients["forget_tok"][0] == pytest.approx([2 / 3, 0.5], abs=1e-4)


def test_the_authors_power(loss_of):
    """beta 4, p = 1/2, q = 1/4: w = 2 / 16 / (1/16 + 1/256 + 1e-5) = 2 / (1 + 1/16 + 0.00016)."""
    inputs = {"forget_tok": [[math.log(0.5)]], "forget_ref_tok": [[math.log(0.25)]]}
    found = loss_of(inputs, retain_weight=0.0)
    assert found.loss == pytest.approx(math.log(0.5) * 2 / 1.06266, rel=1e-6)

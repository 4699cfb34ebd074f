import math

import pytest


def test_by_hand(loss_of):
    """Good tokens of probability 0.5 and 0.1 (mean 0.3), forgotten 0.8: Pearson -0.3 + 0.16 + 0.8 = 0.66."""
    inputs = {"alternative_tok": [[math.log(0.5), math.log(0.1)]], "forget_tok": [[math.log(0.8)]]}
    assert loss_of(inputs, divergence="Pearson").loss == pytest.approx(0.66)
    assert loss_of(inputs, divergence="KL").loss == pytest.approx(-0.3 + math.exp(-0.2))
    found = loss_of(inputs)
    assert found.loss == pytest.approx((math.tanh(0.8) - math.tanh(0.3)) / 2)
    # d tanh(P) / 2 = (1 - tanh^2) / 2, times dP / dlogp = p over the number of tokens
    slope = (1 - math.tanh(0.3) ** 2) / 2
    assert found.gradients["alternative_tok"][0] == pytest.approx([-slope * 0.25, -slope * 0.05])

import math

import pytest
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def test_by_hand(call_loss):
    """z = -0.15 and 0.075: e^(2z) / 8 - e^(-z) / 4; at -0.15 it is 0.092602 - 0.290459 = -0.197856."""
    expected = [math.exp(2 * z) / 8 - math.exp(-z) / 4 for z in (-0.15, 0.075)]
    assert call_loss(POLICY, REFERENCE)[0].tolist() == pytest.approx(expected)
    assert call_loss(POLICY, REFERENCE)[0][0].item() == pytest.approx(-0.197856, abs=1e-6)


def test_other_generators(call_loss):
    assert call_loss(POLICY, REFERENCE, generator="logistic")[0].tolist() == pytest.approx(
        [-logsig(0.15), -logsig(-0.075)]
    )
    assert call_loss(POLICY, REFERENCE, generator="kliep")[0].tolist() == pytest.approx(
        [math.exp(-0.15) - 0.15, math.exp(0.075) + 0.075]
    )


def test_first_gradient_is_that_of_dpo(call_loss):
    """At a margin of 0 both are -beta / 2 by a chosen token."""
    chosen = POLICY.chosen.logps.clone().requires_grad_()
    call_loss(Views(chosen=View(chosen, POLICY.chosen.mask), rejected=POLICY.rejected), POLICY)[0].sum().backward()
    assert chosen.grad.flatten().tolist() == pytest.approx([-0.05] * 8)

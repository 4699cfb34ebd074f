import math

import pytest
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig, pair


def test_by_hand(call_loss):
    """d = 0.075, d / 0.05 = 1.5: s = 0.817574; 0.182426 * 0.656350 + 0.817574 * 0.927743 = 0.878234."""
    loss, metrics = call_loss(POLICY, REFERENCE)
    assert metrics["blend"][0].item() == pytest.approx(0.817574, abs=1e-6)
    assert loss[0].item() == pytest.approx(0.878234, abs=1e-6)
    d = -0.0375
    s = 1 / (1 + math.exp(-d / 0.05))
    assert loss[1].item() == pytest.approx((1 - s) * -logsig(d) + s * math.exp(-d))


def test_slope_where_every_pair_starts(call_loss):
    """s' (1 - log 2) - 1/4 - 1/2 with s' = 1 / (4 tau) = 5: 0.784264, times beta by a chosen token."""
    chosen = POLICY.chosen.logps.clone().requires_grad_()
    call_loss(Views(chosen=View(chosen, POLICY.chosen.mask), rejected=POLICY.rejected), POLICY)[0].sum().backward()
    assert chosen.grad.flatten().tolist() == pytest.approx([0.05 * (5 * (1 - math.log(2)) - 0.75)] * 8)


def test_a_pair_far_on_the_wrong_side_stays_finite(call_loss):
    """A margin of -5000: the exponential alone would be infinite, its weight is 0; the logistic loss is 5000."""
    far = pair([[-25000.0] * 4], [[0.0] * 5])
    loss, _ = call_loss(far, pair([[0.0] * 4], [[0.0] * 5]))
    assert loss.item() == pytest.approx(5000)

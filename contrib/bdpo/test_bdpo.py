import math

import pytest
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def test_by_hand(call_loss):
    """log(0.5 e^-0.5 + 0.5) = -0.219075: 0.1 * (1 + 0.219075) = 0.121907, log(1 + e^-0.121907) = 0.634050."""
    expected = [-logsig(0.1 * (w - math.log(0.5 * math.exp(r) + 0.5))) for w, r in ((1, -0.5), (-0.5, 0.25))]
    assert call_loss(POLICY, REFERENCE)[0].tolist() == pytest.approx(expected)
    assert call_loss(POLICY, REFERENCE)[0][0].item() == pytest.approx(0.634050, abs=1e-6)


def test_the_rejected_answer_cannot_pay_for_a_margin(call_loss):
    """Pushed down by 1000 nats it counts as log 0.5, and has no gradient left."""
    rejected = (POLICY.rejected.logps - 200).requires_grad_()
    loss, metrics = call_loss(Views(chosen=POLICY.chosen, rejected=View(rejected, POLICY.rejected.mask)), REFERENCE)
    loss.sum().backward()
    assert metrics["mixed_rejected"].tolist() == pytest.approx([0.1 * math.log(0.5)] * 2)
    assert rejected.grad.abs().max() == 0

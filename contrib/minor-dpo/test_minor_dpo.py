import pytest
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def test_by_hand(call_loss):
    """The first rejected answer is below the reference: 0.1. The second is above: -0.05 - 0.025 = -0.075."""
    loss, metrics = call_loss(POLICY, REFERENCE)
    assert loss.tolist() == pytest.approx([0.644397, 0.731350], abs=1e-6)
    assert loss.tolist() == pytest.approx([-logsig(0.1), -logsig(-0.075)])
    assert metrics["above"].tolist() == [0, 1]


def test_no_push_below_the_reference(call_loss):
    rejected = POLICY.rejected.logps.clone().requires_grad_()
    call_loss(Views(chosen=POLICY.chosen, rejected=View(rejected, POLICY.rejected.mask)), REFERENCE)[0].sum().backward()
    assert rejected.grad[0].abs().max() == 0
    assert rejected.grad[1].min() > 0

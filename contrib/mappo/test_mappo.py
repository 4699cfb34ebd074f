import pytest
import torch
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def test_by_hand(call_loss):
    """0.1 + 0.5 * 0.05 = 0.125: log(1 + e^-0.125) = 0.632599; a gap of 3 counts as 1: -0.05 - 0.025 = -0.075."""
    scores = {"chosen_score": torch.tensor([0.9, 3.0]), "rejected_score": torch.tensor([0.4, 0.0])}
    assert call_loss(POLICY, REFERENCE, columns=scores)[0].tolist() == pytest.approx(
        [0.632599, -logsig(-0.075)], abs=1e-6
    )


def test_equally_good_answers_leave_the_rejected_one_alone(call_loss):
    rejected = POLICY.rejected.logps.clone().requires_grad_()
    same = {"chosen_score": torch.ones(2), "rejected_score": torch.ones(2)}
    policy = Views(chosen=POLICY.chosen, rejected=View(rejected, POLICY.rejected.mask))
    call_loss(policy, REFERENCE, columns=same)[0].sum().backward()
    assert rejected.grad.abs().max() == 0

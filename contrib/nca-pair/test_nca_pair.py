import math

import pytest
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def test_by_hand(call_loss):
    """Rewards 0.1 and -0.05: 0.644397 + (0.744397 + 0.668460) / 2 = 1.350825."""
    loss, _ = call_loss(POLICY, REFERENCE, beta=0.1)
    expected = [-logsig(w) - 0.5 * logsig(-w) - 0.5 * logsig(-r) for w, r in ((0.1, -0.05), (-0.05, 0.025))]
    assert loss.tolist() == pytest.approx(expected)
    assert loss[0].item() == pytest.approx(1.350825, abs=1e-6)


def test_the_chosen_answer_has_its_own_optimum(call_loss):
    """Its part -log s(r) - log s(-r) / 2 is least at r = log 2, where s(r) = 2/3, whatever the rejected one does."""
    chosen = POLICY.chosen.logps.clone().requires_grad_()
    policy = Views(chosen=View(chosen, POLICY.chosen.mask), rejected=POLICY.rejected)
    call_loss(policy, REFERENCE, beta=math.log(2))[0].sum().backward()
    assert chosen.grad[0].abs().max().item() == pytest.approx(0, abs=1e-12)
    assert chosen.grad[1].max().item() < 0

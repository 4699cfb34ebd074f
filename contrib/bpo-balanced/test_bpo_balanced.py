import pytest
import torch
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def test_by_hand(call_loss):
    """min(0.1, 0.025) = 0.025: 0.680725. min(-0.05, -0.0125) = -0.05; with alpha 1 min(-0.05, -0.025) too: 0.718460."""
    loss, metrics = call_loss(POLICY, REFERENCE)
    assert loss.tolist() == pytest.approx([0.680725, 0.718460], abs=1e-6)
    assert loss.tolist() == pytest.approx([-logsig(0.025), -logsig(-0.05)])
    assert metrics["chosen_lags"].tolist() == [0, 1]


def test_one_answer_of_a_pair_learns_and_at_first_the_chosen_one(call_loss):
    rows = [one.logps.clone().requires_grad_() for one in (POLICY.chosen, POLICY.rejected)]
    policy = Views(chosen=View(rows[0], POLICY.chosen.mask), rejected=View(rows[1], POLICY.rejected.mask))
    one = torch.autograd.grad(call_loss(policy, REFERENCE)[0].sum(), rows)
    assert [side.abs().sum(-1).gt(0).tolist() for side in one] == [[False, True], [True, False]]
    first = torch.autograd.grad(call_loss(policy, POLICY)[0].sum(), rows)
    assert [side.abs().sum(-1).gt(0).tolist() for side in first] == [[True, True], [False, False]]

import pytest
import torch
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def test_by_hand(call_loss):
    """4 tokens against 5: 0.15 - 0.03 = 0.12, log(1 + e^-0.12) = 0.634946."""
    loss, metrics = call_loss(POLICY, REFERENCE, alpha=0.03)
    assert loss.tolist() == pytest.approx([0.634946, -logsig(-0.105)], abs=1e-6)
    assert metrics["length_gap"].tolist() == [-1, -1]


def test_a_short_winner_teaches_more_than_a_long_one(call_loss):
    chosen = POLICY.chosen.logps.clone().requires_grad_()
    forces = []
    for alpha in (0.0, 0.5):
        loss, _ = call_loss(
            Views(chosen=View(chosen, POLICY.chosen.mask), rejected=POLICY.rejected), REFERENCE, alpha=alpha
        )
        forces.append(torch.autograd.grad(loss.sum(), chosen)[0].abs())
    assert bool((forces[1] > forces[0]).all())

import math

import pytest
import torch
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def test_by_hand(call_loss):
    """e + 1 - (e^-0.5 - 0.5) = 3.611751, a tenth of it: 0.528778; without a cut the second pair has 0.767067."""
    loss, metrics = call_loss(POLICY, REFERENCE)
    assert metrics["margin"][0].item() == pytest.approx(0.1 * (math.e + 1 - math.exp(-0.5) + 0.5))
    assert loss.tolist() == pytest.approx([0.528778, 0.767067], abs=1e-6)


def test_beyond_the_bound_nothing_is_learnt(call_loss):
    """With beta 10 the first difference is 36, cut to 2; None leaves it."""
    chosen = POLICY.chosen.logps.clone().requires_grad_()
    policy = Views(chosen=View(chosen, POLICY.chosen.mask), rejected=POLICY.rejected)
    cut, _ = call_loss(policy, REFERENCE, beta=10.0)
    assert cut[0].item() == pytest.approx(-logsig(2))
    assert torch.autograd.grad(cut[0], chosen)[0].abs().max() == 0
    assert call_loss(policy, REFERENCE, beta=10.0, reward_bound=None)[0][0].item() < 1e-12

import math

import pytest
import torch
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import POLICY, REFERENCE


def test_by_hand(call_loss):
    """The first pair is won, with probability 1 / (1 + 3 e^-0.15); the second tied: what both wins leave over."""

    def win(d):
        return 1 / (1 + 3 * math.exp(-d))

    loss, _ = call_loss(POLICY, REFERENCE, columns={"tie": torch.tensor([False, True])})
    assert loss.tolist() == pytest.approx([-math.log(win(0.15)), -math.log(1 - win(-0.075) - win(0.075))])
    assert loss.mean().item() == pytest.approx(0.985079, abs=1e-6)


def test_a_tie_is_likeliest_between_equals(call_loss):
    """Its gradient at a margin of 0 is nothing, and half of equal pairs tie at nu 3: log 2."""
    chosen = POLICY.chosen.logps.clone().requires_grad_()
    policy = Views(chosen=View(chosen, POLICY.chosen.mask), rejected=POLICY.rejected)
    loss, _ = call_loss(policy, POLICY, columns={"tie": torch.tensor([True, True])})
    assert loss.tolist() == pytest.approx([math.log(2)] * 2)
    assert torch.autograd.grad(loss.sum(), chosen)[0].abs().max() < 1e-12

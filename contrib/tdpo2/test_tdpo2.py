import math

import pytest
import torch
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import POLICY, REFERENCE, method_beside, tensor

METHOD = method_beside(__file__)


def diverged(chosen, rejected):
    """POLICY whose answers have these divergences in all, evenly over their tokens."""
    sides = ((POLICY.chosen, chosen), (POLICY.rejected, rejected))
    spread = [torch.full_like(one.logps, value / one.logps.shape[1]) for one, value in sides]
    rows = [View(one.logps, one.mask, kl=each) for (one, _), each in zip(sides, spread, strict=True)]
    return Views(chosen=rows[0], rejected=rows[1])


def statistics(**logits):
    return METHOD.token_statistics(labels=torch.zeros(2, dtype=torch.long), config=METHOD.config({}), **logits)


def test_divergence_of_known_distributions():
    """0.5 log(0.5 / 0.25) + 0.5 log(0.5 / 0.75) = 0.143841; of equal distributions 0."""
    logits = tensor([0.25, 0.75], [0.9, 0.1]).log()
    reference = tensor([0.5, 0.5], [0.9, 0.1]).log()
    found = statistics(logits=logits, reference_logits=reference)["kl"]
    assert found.tolist() == pytest.approx([0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0.0])


def test_by_hand(call_loss):
    """0.1 * (1.5 + 0.5 * (0.35 - 0.75)) = 0.13: log(1 + e^-0.13) = 0.630258."""
    assert call_loss(diverged(0.35, 0.75), REFERENCE)[0][0].item() == pytest.approx(0.630258, abs=1e-6)


def test_only_the_rejected_divergence_has_a_gradient(call_loss):
    """By K of the rejected answer it is beta alpha sigmoid(-0.13), by that of the chosen one nothing."""
    policy = diverged(0.35, 0.75)
    for view in (policy.chosen, policy.rejected):
        view.kl.requires_grad_()
    call_loss(policy, REFERENCE)[0][0].backward()
    assert policy.chosen.kl.grad is None
    assert policy.rejected.kl.grad[0].tolist() == pytest.approx([0.05 / (1 + math.exp(0.13))] * 5)

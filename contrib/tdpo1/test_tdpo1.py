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
    """0.1 * (1.5 + 0.35 - 0.75) = 0.11: log(1 + e^-0.11) = 0.639659."""
    loss, metrics = call_loss(diverged(0.35, 0.75), REFERENCE)
    assert loss[0].item() == pytest.approx(0.639659, abs=1e-6)
    assert metrics["kl_rejected"].tolist() == pytest.approx([0.75, 0.75])

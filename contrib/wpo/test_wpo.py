import math

import pytest
import torch
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import POLICY, REFERENCE, tensor


def weighed(chosen, rejected):
    """POLICY with these collision statistics on every token."""
    sides = ((POLICY.chosen, chosen), (POLICY.rejected, rejected))
    rows = [View(one.logps, one.mask, log_collision=torch.full_like(one.logps, value)) for one, value in sides]
    return Views(chosen=rows[0], rejected=rows[1])


def test_by_hand(call_loss):
    """Log-weights -2.5 + 1.5 = -1 and -2.4 + 1.4 = -1: e^-2 log(1 + e^-0.15) = 0.135335 * 0.620957 = 0.084037."""
    loss, metrics = call_loss(weighed(-1.5, -1.4), REFERENCE, beta=0.1)
    assert metrics["weight"][0].item() == pytest.approx(math.exp(-2))
    assert loss[0].item() == pytest.approx(0.084037, abs=1e-6)


def test_statistic_of_a_known_distribution(method):
    """Probabilities 0.5, 0.25, 0.25: the sum of squares is 0.375. Of a certain one it is 1."""
    logits = tensor([0.5, 0.25, 0.25], [1.0, 1e-30, 1e-30]).log().requires_grad_()
    labels = torch.zeros(2, dtype=torch.long)
    found = method.token_statistics(logits=logits, labels=labels, config=method.config({}))["log_collision"]
    assert found.tolist() == pytest.approx([math.log(0.375), 0.0])
    assert not found.requires_grad


def test_no_gradient_through_the_weights(call_loss):
    """By a chosen token it is -weight * beta * sigmoid(-margin)."""
    chosen = POLICY.chosen.logps.clone().requires_grad_()
    other = weighed(-1.5, -1.4)
    view = View(chosen, POLICY.chosen.mask, log_collision=other.chosen.log_collision)
    call_loss(Views(chosen=view, rejected=other.rejected), REFERENCE, beta=0.1)[0].sum().backward()
    assert chosen.grad[0, 0].item() == pytest.approx(-math.exp(-2) * 0.1 / (1 + math.exp(0.15)))

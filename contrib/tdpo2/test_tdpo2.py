"""TDPO2 against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
import torch
from posttrain.methods import load
from posttrain.views import Batch, Step, View, Views
from posttrain_testkit.goldens.compare import evaluate

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"
METHOD = load(str(HERE))


def views(chosen, rejected):
    """Views of one row of log-probs a pair; sums -10 and -8 over 4 tokens, -12 and -7 over 5 in POLICY."""
    sides = {}
    for role, rows in (("chosen", chosen), ("rejected", rejected)):
        values = torch.tensor(rows, dtype=torch.float64)  # (B, T)
        sides[role] = View(values, torch.ones_like(values, dtype=torch.bool))
    return Views(**sides)


#: Log-ratios 1 and -0.5 of the first pair, -0.5 and 0.25 of the second.
POLICY = views([[-1, -2, -3, -4], [-2, -2, -2, -2]], [[-1, -2.5, -2, -3.5, -3], [-1, -1, -1, -2, -2]])
REFERENCE = views([[-1.5, -2, -3.5, -4], [-2, -2, -2, -1.5]], [[-1.5, -2, -2.5, -3, -2.5], [-1, -1, -1, -2, -2.25]])


def loss_of(policy=POLICY, reference=REFERENCE, columns=None, step=None, **options):
    return METHOD.loss(
        batch=Batch(len(policy.chosen.logps), columns or {}),
        policy=policy,
        reference=reference,
        config=METHOD.config(options),
        step=step or Step(0, 1),
    )


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
    logits = torch.tensor([[0.25, 0.75], [0.9, 0.1]], dtype=torch.float64).log()
    reference = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64).log()
    found = statistics(logits=logits, reference_logits=reference)["kl"]
    assert found.tolist() == pytest.approx([0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0.0])


def test_by_hand():
    """0.1 * (1.5 + 0.5 * (0.35 - 0.75)) = 0.13: log(1 + e^-0.13) = 0.630258."""
    assert loss_of(diverged(0.35, 0.75))[0][0].item() == pytest.approx(0.630258, abs=1e-6)


def test_only_the_rejected_divergence_has_a_gradient():
    """By K of the rejected answer it is beta alpha sigmoid(-0.13), by that of the chosen one nothing."""
    policy = diverged(0.35, 0.75)
    for view in (policy.chosen, policy.rejected):
        view.kl.requires_grad_()
    loss_of(policy)[0][0].backward()
    assert policy.chosen.kl.grad is None
    assert policy.rejected.kl.grad[0].tolist() == pytest.approx([0.05 / (1 + math.exp(0.13))] * 5)


def test_goldens():
    found = evaluate(GOLDENS, "tdpo2", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("tdpo2",), "equal")

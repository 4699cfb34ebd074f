"""MaPPO against numbers worked by hand and the golden values."""

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


def logsig(x):
    return -math.log(1 + math.exp(-x))


def test_by_hand():
    """0.1 + 0.5 * 0.05 = 0.125: log(1 + e^-0.125) = 0.632599; a gap of 3 counts as 1: -0.05 - 0.025 = -0.075."""
    scores = {"chosen_score": torch.tensor([0.9, 3.0]), "rejected_score": torch.tensor([0.4, 0.0])}
    assert loss_of(columns=scores)[0].tolist() == pytest.approx([0.632599, -logsig(-0.075)], abs=1e-6)


def test_equally_good_answers_leave_the_rejected_one_alone():
    rejected = POLICY.rejected.logps.clone().requires_grad_()
    same = {"chosen_score": torch.ones(2), "rejected_score": torch.ones(2)}
    policy = Views(chosen=POLICY.chosen, rejected=View(rejected, POLICY.rejected.mask))
    loss_of(policy, columns=same)[0].sum().backward()
    assert rejected.grad.abs().max() == 0


def test_goldens():
    found = evaluate(GOLDENS, "mappo", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("mappo",), "equal")

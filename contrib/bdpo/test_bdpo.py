"""Bounded DPO against numbers worked by hand and the golden values."""

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
    """log(0.5 e^-0.5 + 0.5) = -0.219075: 0.1 * (1 + 0.219075) = 0.121907, log(1 + e^-0.121907) = 0.634050."""
    expected = [-logsig(0.1 * (w - math.log(0.5 * math.exp(r) + 0.5))) for w, r in ((1, -0.5), (-0.5, 0.25))]
    assert loss_of()[0].tolist() == pytest.approx(expected)
    assert loss_of()[0][0].item() == pytest.approx(0.634050, abs=1e-6)


def test_the_rejected_answer_cannot_pay_for_a_margin():
    """Pushed down by 1000 nats it counts as log 0.5, and has no gradient left."""
    rejected = (POLICY.rejected.logps - 200).requires_grad_()
    loss, metrics = loss_of(Views(chosen=POLICY.chosen, rejected=View(rejected, POLICY.rejected.mask)))
    loss.sum().backward()
    assert metrics["mixed_rejected"].tolist() == pytest.approx([0.1 * math.log(0.5)] * 2)
    assert rejected.grad.abs().max() == 0


def test_goldens():
    found = evaluate(GOLDENS, "bdpo", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("bdpo",), "equal")

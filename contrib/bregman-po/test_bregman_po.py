"""Bregman preference optimisation against numbers worked by hand and the golden values."""

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
    """z = -0.15 and 0.075: e^(2z) / 8 - e^(-z) / 4; at -0.15 it is 0.092602 - 0.290459 = -0.197856."""
    expected = [math.exp(2 * z) / 8 - math.exp(-z) / 4 for z in (-0.15, 0.075)]
    assert loss_of()[0].tolist() == pytest.approx(expected)
    assert loss_of()[0][0].item() == pytest.approx(-0.197856, abs=1e-6)


def test_other_generators():
    assert loss_of(generator="logistic")[0].tolist() == pytest.approx([-logsig(0.15), -logsig(-0.075)])
    assert loss_of(generator="kliep")[0].tolist() == pytest.approx([math.exp(-0.15) - 0.15, math.exp(0.075) + 0.075])


def test_first_gradient_is_that_of_dpo():
    """At a margin of 0 both are -beta / 2 by a chosen token."""
    chosen = POLICY.chosen.logps.clone().requires_grad_()
    loss_of(Views(chosen=View(chosen, POLICY.chosen.mask), rejected=POLICY.rejected), POLICY)[0].sum().backward()
    assert chosen.grad.flatten().tolist() == pytest.approx([-0.05] * 8)


def test_goldens():
    found = evaluate(GOLDENS, "bregman-po", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(
        (
            "bregman-po",
            "bregman-po:logistic",
            "bregman-po:kliep",
        ),
        "equal",
    )

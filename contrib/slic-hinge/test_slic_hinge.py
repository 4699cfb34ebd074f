"""Hinge preference optimisation against numbers worked by hand and the golden values."""

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


def test_by_hand():
    """1 - 0.1 * 1.5 = 0.85; 1 + 0.1 * 0.75 = 1.075."""
    loss, metrics = loss_of(beta=0.1)
    assert loss.tolist() == pytest.approx([0.85, 1.075])
    assert metrics["learnt"].tolist() == [0, 0]


def test_a_learnt_pair_has_no_gradient():
    """At beta 1 the first pair's margin of 1.5 is beyond 1, the second's -0.75 falls short by 1.75."""
    chosen = POLICY.chosen.logps.clone().requires_grad_()
    loss, metrics = loss_of(Views(chosen=View(chosen, POLICY.chosen.mask), rejected=POLICY.rejected), beta=1.0)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0, 1.75])
    assert metrics["learnt"].tolist() == [1, 0]
    assert chosen.grad.tolist() == [[0] * 4, [-1] * 4]


def test_goldens():
    found = evaluate(GOLDENS, "slic-hinge", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("slic-hinge",), "equal")

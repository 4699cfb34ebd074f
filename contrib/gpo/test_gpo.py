"""Generalised preference optimisation against numbers worked by hand and the golden values."""

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


@pytest.mark.parametrize(
    ("convex", "function"),
    [
        ("logistic", lambda z: math.log(1 + math.exp(-z))),
        ("hinge", lambda z: max(0, 1 - z)),
        ("squared", lambda z: (1 - z) * (1 - z)),
        ("exponential", lambda z: 1 / math.exp(z)),
        ("truncated_quadratic", lambda z: max(0, 1 - z) ** 2),
        ("savage", lambda z: (1 + math.exp(z)) ** -2),
    ],
)
def test_by_hand(convex, function):
    """At margins 0.15 and -0.075, and at 1.5 and -0.75 with beta 1."""
    assert loss_of(convex=convex)[0].tolist() == pytest.approx([function(0.15), function(-0.075)])
    assert loss_of(convex=convex, beta=1.0)[0].tolist() == pytest.approx([function(1.5), function(-0.75)])


def test_goldens():
    found = evaluate(GOLDENS, "gpo", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(
        (
            "gpo",
            "gpo:savage",
            "gpo:truncated_quadratic",
            "gpo:squared",
        ),
        "equal",
    )

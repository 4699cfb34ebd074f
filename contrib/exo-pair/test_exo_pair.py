"""EXO on pairs against numbers worked by hand and the golden values."""

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


def test_by_hand():
    """q = sigmoid(0.15) = 0.537430: q log(q / 0.999) + (1 - q) log((1 - q) / 0.001) = 2.505517."""
    q = 1 / (1 + math.exp(-0.15))
    assert loss_of()[0][0].item() == pytest.approx(q * math.log(q / 0.999) + (1 - q) * math.log((1 - q) / 0.001))
    assert loss_of()[0][0].item() == pytest.approx(2.505517, abs=1e-6)


def test_least_where_the_policy_is_as_sure_as_the_label():
    """At a margin of log(0.8 / 0.2) a label of 0.8 is met: the divergence is 0, and positive elsewhere."""
    met = math.log(4) / 1.5
    assert loss_of(beta=met, label_smoothing=0.2)[0][0].item() == pytest.approx(0, abs=1e-12)
    assert all(loss_of(beta=met + shift, label_smoothing=0.2)[0][0] > 0 for shift in (-0.3, 0.3))


def test_goldens():
    found = evaluate(GOLDENS, "exo-pair", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("exo-pair",), "equal")

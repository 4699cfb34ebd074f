"""DPO-Shift against numbers worked by hand and the golden values."""

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
    """0.1 * (1 + 0.75 * 0.5) = 0.1375: log(1 + e^-0.1375) = 0.626759."""
    assert loss_of()[0].tolist() == pytest.approx([0.626759, -logsig(0.1 * (-0.5 - 0.75 * 0.25))], abs=1e-6)


def test_weight_goes_in_a_straight_line():
    """From 0.5 to 1 over steps 0 to 10."""
    for number, expected in ((0, 0.5), (5, 0.75), (10, 1.0)):
        step = Step(number, 11)
        assert loss_of(step=step, rejected_weight=0.5, final_weight=1.0)[1]["rejected_weight"][0].item() == expected


def test_goldens():
    found = evaluate(GOLDENS, "dpo-shift", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("dpo-shift",), "equal")

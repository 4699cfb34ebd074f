"""SPPO with hard labels against numbers worked by hand and the golden values."""

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
    """Targets 5 and -5: (1 - 5)^2 + (-0.5 + 5)^2 = 36.25; (-0.5 - 5)^2 + (0.25 + 5)^2 = 57.8125."""
    assert loss_of(beta=0.1)[0].tolist() == pytest.approx([36.25, 57.8125])


def test_equal_models_pay_the_targets():
    """At the first step both log-ratios are 0: 2 * 500^2."""
    assert loss_of(POLICY, POLICY)[0].tolist() == pytest.approx([500000, 500000])


def test_goldens():
    found = evaluate(GOLDENS, "sppo-hard", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("sppo-hard",), "equal")

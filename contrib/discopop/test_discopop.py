"""DiscoPOP against numbers worked by hand and the golden values."""

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
    """d = 0.075, d / 0.05 = 1.5: s = 0.817574; 0.182426 * 0.656350 + 0.817574 * 0.927743 = 0.878234."""
    loss, metrics = loss_of()
    assert metrics["blend"][0].item() == pytest.approx(0.817574, abs=1e-6)
    assert loss[0].item() == pytest.approx(0.878234, abs=1e-6)
    d = -0.0375
    s = 1 / (1 + math.exp(-d / 0.05))
    assert loss[1].item() == pytest.approx((1 - s) * -logsig(d) + s * math.exp(-d))


def test_slope_where_every_pair_starts():
    """s' (1 - log 2) - 1/4 - 1/2 with s' = 1 / (4 tau) = 5: 0.784264, times beta by a chosen token."""
    chosen = POLICY.chosen.logps.clone().requires_grad_()
    loss_of(Views(chosen=View(chosen, POLICY.chosen.mask), rejected=POLICY.rejected), POLICY)[0].sum().backward()
    assert chosen.grad.flatten().tolist() == pytest.approx([0.05 * (5 * (1 - math.log(2)) - 0.75)] * 8)


def test_a_pair_far_on_the_wrong_side_stays_finite():
    """A margin of -5000: the exponential alone would be infinite, its weight is 0; the logistic loss is 5000."""
    far = views([[-25000.0] * 4], [[0.0] * 5])
    loss, _ = loss_of(far, views([[0.0] * 4], [[0.0] * 5]))
    assert loss.item() == pytest.approx(5000)


def test_goldens():
    found = evaluate(GOLDENS, "discopop", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("discopop",), "equal")

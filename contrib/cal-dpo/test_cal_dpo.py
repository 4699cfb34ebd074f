"""Cal-DPO against numbers worked by hand and the golden values."""

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
    """log(1 + e^-1.5) = 0.201413; half of (1 - 5)^2 + (-0.5 + 5)^2 is 18.125, of 5.5^2 + 5.25^2 28.90625."""
    loss, _ = loss_of()
    assert loss["preference"].tolist() == pytest.approx([0.201413, -logsig(-0.75)], abs=1e-6)
    assert loss["calibration"].tolist() == pytest.approx([18.125, 28.90625])


def test_calibrated_log_ratios_are_left_alone():
    """At beta 0.5 the targets are 1 and -1: a pair that has them pays nothing for calibration."""
    aligned = Views(chosen=View(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)),
                    rejected=View(-torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)))  # fmt: skip
    still = View(torch.zeros(1, 1), aligned.chosen.mask)
    zero = Views(chosen=still, rejected=still)
    assert loss_of(aligned, zero, beta=0.5)[0]["calibration"].tolist() == [0]


def test_goldens():
    found = evaluate(GOLDENS, "cal-dpo", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(
        (
            "cal-dpo",
            "cal-dpo:paper_coef_1",
        ),
        "equal",
    )

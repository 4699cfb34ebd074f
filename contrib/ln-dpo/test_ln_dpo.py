"""Length-normalised DPO against numbers worked by hand and the golden values."""

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
    """5 * (1 / 4 + 0.5 / 5) = 1.75: log(1 + e^-1.75) = 0.160224; 5 * (-0.5 / 4 - 0.25 / 5) = -0.875."""
    assert loss_of()[0].tolist() == pytest.approx([0.160224, -logsig(-0.875)], abs=1e-6)


def test_an_answer_twice_as_long_with_the_same_tokens_counts_the_same():
    twice = [Views(chosen=View(one.chosen.logps.repeat(1, 2), one.chosen.mask.repeat(1, 2)), rejected=one.rejected)
             for one in (POLICY, REFERENCE)]  # fmt: skip
    assert loss_of(*twice)[0].tolist() == pytest.approx(loss_of()[0].tolist())


def test_goldens():
    found = evaluate(GOLDENS, "ln-dpo", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("ln-dpo",), "equal")

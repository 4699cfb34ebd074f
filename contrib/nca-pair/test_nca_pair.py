"""NCA on pairs against numbers worked by hand and the golden values."""

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
    """Rewards 0.1 and -0.05: 0.644397 + (0.744397 + 0.668460) / 2 = 1.350825."""
    loss, _ = loss_of(beta=0.1)
    expected = [-logsig(w) - 0.5 * logsig(-w) - 0.5 * logsig(-r) for w, r in ((0.1, -0.05), (-0.05, 0.025))]
    assert loss.tolist() == pytest.approx(expected)
    assert loss[0].item() == pytest.approx(1.350825, abs=1e-6)


def test_the_chosen_answer_has_its_own_optimum():
    """Its part -log s(r) - log s(-r) / 2 is least at r = log 2, where s(r) = 2/3, whatever the rejected one does."""
    chosen = POLICY.chosen.logps.clone().requires_grad_()
    policy = Views(chosen=View(chosen, POLICY.chosen.mask), rejected=POLICY.rejected)
    loss_of(policy, beta=math.log(2))[0].sum().backward()
    assert chosen.grad[0].abs().max().item() == pytest.approx(0, abs=1e-12)
    assert chosen.grad[1].max().item() < 0


def test_goldens():
    found = evaluate(GOLDENS, "nca-pair", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("nca-pair",), "equal")

"""Chi-squared preference optimisation against numbers worked by hand and the golden values."""

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
    """e + 1 - (e^-0.5 - 0.5) = 3.611751, a tenth of it: 0.528778; without a cut the second pair has 0.767067."""
    loss, metrics = loss_of()
    assert metrics["margin"][0].item() == pytest.approx(0.1 * (math.e + 1 - math.exp(-0.5) + 0.5))
    assert loss.tolist() == pytest.approx([0.528778, 0.767067], abs=1e-6)


def test_beyond_the_bound_nothing_is_learnt():
    """With beta 10 the first difference is 36, cut to 2; None leaves it."""
    chosen = POLICY.chosen.logps.clone().requires_grad_()
    policy = Views(chosen=View(chosen, POLICY.chosen.mask), rejected=POLICY.rejected)
    cut, _ = loss_of(policy, beta=10.0)
    assert cut[0].item() == pytest.approx(-logsig(2))
    assert torch.autograd.grad(cut[0], chosen)[0].abs().max() == 0
    assert loss_of(policy, beta=10.0, reward_bound=None)[0][0].item() < 1e-12


def test_goldens():
    found = evaluate(GOLDENS, "chi-po", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("chi-po",), "equal")

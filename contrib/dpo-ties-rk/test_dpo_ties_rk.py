"""DPO with ties (Rao-Kupper) against numbers worked by hand and the golden values."""

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
    """The first pair is won, with probability 1 / (1 + 3 e^-0.15); the second tied: what both wins leave over."""

    def win(d):
        return 1 / (1 + 3 * math.exp(-d))

    loss, _ = loss_of(columns={"tie": torch.tensor([False, True])})
    assert loss.tolist() == pytest.approx([-math.log(win(0.15)), -math.log(1 - win(-0.075) - win(0.075))])
    assert loss.mean().item() == pytest.approx(0.985079, abs=1e-6)


def test_a_tie_is_likeliest_between_equals():
    """Its gradient at a margin of 0 is nothing, and half of equal pairs tie at nu 3: log 2."""
    chosen = POLICY.chosen.logps.clone().requires_grad_()
    policy = Views(chosen=View(chosen, POLICY.chosen.mask), rejected=POLICY.rejected)
    loss, _ = loss_of(policy, POLICY, columns={"tie": torch.tensor([True, True])})
    assert loss.tolist() == pytest.approx([math.log(2)] * 2)
    assert torch.autograd.grad(loss.sum(), chosen)[0].abs().max() < 1e-12


def test_goldens():
    found = evaluate(GOLDENS, "dpo-ties-rk", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("dpo-ties-rk",), "equal")

"""CPO-SimPO against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
import torch
from posttrain.methods import load
from posttrain.views import Batch, PerToken, Step, View, Views
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
    """Means -2.5 and -2.4, -2 and -1.4: 2 * -0.1 - 1 = -1.2 and 2 * -0.6 - 1 = -2.2; log(1 + e^1.2) = 1.463282."""
    loss, _ = loss_of()
    assert loss["preference"].tolist() == pytest.approx([1.463282, math.log(1 + math.exp(2.2))], abs=1e-6)


def test_likelihood_is_per_token():
    """S6: unreduced, so that the core divides by the tokens of the whole step."""
    loss, _ = loss_of(sft_weight=0.5)
    assert isinstance(loss["nll"], PerToken)
    assert loss["nll"].values.tolist() == [[0.5, 1, 1.5, 2], [1, 1, 1, 1]]
    assert loss["nll"].mask is POLICY.chosen.mask


def test_goldens():
    found = evaluate(GOLDENS, "cpo-simpo", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("cpo-simpo",), "equal")

"""AlphaPO against numbers worked by hand and the golden values."""

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
    """(1 - e^0.625) / 0.25 = -3.472984 and (1 - e^0.6) / 0.25 = -3.288475, times 2.5: margin -0.461273."""
    loss, metrics = loss_of()
    assert metrics["reward_chosen"][0].item() == pytest.approx(2.5 * -3.472984, abs=1e-5)
    assert metrics["margin"][0].item() == pytest.approx(-0.461273, abs=1e-5)
    assert loss[0].item() == pytest.approx(1.012655, abs=1e-6)


def test_no_bend_is_simpo():
    """2.5 * (-2.5 + 2.4) - 0.1 = -0.35; a tiny bend comes close."""
    assert loss_of(alpha=0.0)[0][0].item() == pytest.approx(-logsig(-0.35))
    assert loss_of(alpha=1e-7)[0].tolist() == pytest.approx(loss_of(alpha=0.0)[0].tolist(), abs=1e-5)


def test_goldens():
    found = evaluate(GOLDENS, "alphapo", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("alphapo",), "equal")

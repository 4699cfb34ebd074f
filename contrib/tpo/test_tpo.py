"""TPO against numbers worked by hand and the golden values."""

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


def logsig(x):
    return -math.log(1 + math.exp(-x))


def triple(gold):
    values = torch.tensor(gold, dtype=torch.float64)  # (B, T)
    return Views(chosen=POLICY.chosen, rejected=POLICY.rejected, gold=View(values, torch.ones_like(values).bool()))


def test_by_hand():
    """0.01 * 2 and 0.01 * -1; the gold answers' tokens cost 1 and 2, 0.5 and 1.5, unreduced."""
    loss, metrics = loss_of(triple([[-1, -2], [-0.5, -1.5]]))
    assert loss["preference"].tolist() == pytest.approx([-logsig(0.02), -logsig(-0.01)])
    assert isinstance(loss["nll"], PerToken)
    assert loss["nll"].values.tolist() == [[1, 2], [0.5, 1.5]]
    assert metrics["logp_gold"].tolist() == [-3, -2]


def test_means_with_a_margin():
    """2 * (-2.5 + 2.4) - 0.5 = -0.7: log(1 + e^0.7) = 1.103186."""
    loss, _ = loss_of(triple([[-1.0], [-1.0]]), length_normalize=True, beta=2.0)
    assert loss["preference"][0].item() == pytest.approx(1.103186, abs=1e-6)


def test_goldens():
    found = evaluate(GOLDENS, "tpo", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(
        (
            "tpo",
            "tpo:tpo_l_beta2_gamma0.5",
        ),
        "equal",
    )

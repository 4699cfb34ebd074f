"""SLiC-HF against numbers worked by hand and the golden values."""

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
    """Gaps 2 and -1: relu(1 - 2) = 0 and relu(1 + 1) = 2; a tenth of 10 and of 8."""
    loss, metrics = loss_of()
    assert loss["calibration"].tolist() == pytest.approx([0, 2])
    assert loss["nll"].tolist() == pytest.approx([1, 0.8])
    assert metrics["margin"].tolist() == [2, -1]


def test_a_calibrated_pair_is_only_imitated():
    """The gradient by each token of the first chosen answer is -0.1, of its rejected one 0."""
    rows = [one.logps.clone().requires_grad_() for one in (POLICY.chosen, POLICY.rejected)]
    policy = Views(chosen=View(rows[0], POLICY.chosen.mask), rejected=View(rows[1], POLICY.rejected.mask))
    loss, _ = loss_of(policy)
    (loss["calibration"] + loss["nll"]).sum().backward()
    assert rows[0].grad.tolist() == [[pytest.approx(-0.1)] * 4, [pytest.approx(-1.1)] * 4]
    assert rows[1].grad.tolist() == [[0] * 5, [1] * 5]


def test_goldens():
    found = evaluate(GOLDENS, "slic-hf", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("slic-hf",), "equal")

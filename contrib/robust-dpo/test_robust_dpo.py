"""Robust DPO against numbers worked by hand and the golden values."""

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
    """Margins 0.15 and -0.075: (-0.9 logsig(z) + 0.1 logsig(-z)) / 0.8 = 0.602207 and 0.740939."""
    loss, metrics = loss_of()
    assert metrics["margin"].tolist() == pytest.approx([0.15, -0.075])
    expected = [(-0.9 * logsig(z) + 0.1 * logsig(-z)) / 0.8 for z in (0.15, -0.075)]
    assert loss.tolist() == pytest.approx(expected)
    assert loss[0].item() == pytest.approx(0.602207, abs=1e-6)


def test_mean_over_swapped_labels_is_the_loss_of_clean_ones():
    """Of ten equal pairs one is swapped: the mean of the corrected losses is DPO's loss of the right label."""
    swapped, behind = (Views(chosen=one.rejected, rejected=one.chosen) for one in (POLICY, REFERENCE))
    noisy = 0.9 * loss_of()[0] + 0.1 * loss_of(swapped, behind)[0]
    assert noisy.tolist() == pytest.approx([-logsig(0.15), -logsig(-0.075)])


def test_half_of_the_labels_swapped_teaches_nothing_and_is_refused():
    with pytest.raises(Exception, match=r"label_smoothing is 0\.5, expected a share from 0 to below 0\.5"):
        METHOD.config({"label_smoothing": 0.5})


def test_goldens():
    found = evaluate(GOLDENS, "robust-dpo", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("robust-dpo",), "equal")

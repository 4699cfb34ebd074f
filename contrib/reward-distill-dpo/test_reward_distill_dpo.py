"""Reward model distillation against numbers worked by hand and the golden values."""

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


SCORES = {"chosen_score": torch.tensor([0.9, 0.1]), "rejected_score": torch.tensor([0.4, 0.3])}


def test_by_hand():
    """(0.15 - 0.5)^2 = 0.1225; (-0.075 + 0.2)^2 = 0.015625."""
    assert loss_of(columns=SCORES)[0].tolist() == pytest.approx([0.1225, 0.015625])


def test_the_names_of_the_answers_do_not_matter():
    """Swapping chosen and rejected, scores too, changes nothing."""
    swapped = [Views(chosen=one.rejected, rejected=one.chosen) for one in (POLICY, REFERENCE)]
    columns = {"chosen_score": SCORES["rejected_score"], "rejected_score": SCORES["chosen_score"]}
    assert loss_of(*swapped, columns=columns)[0].tolist() == pytest.approx([0.1225, 0.015625])


def test_goldens():
    found = evaluate(GOLDENS, "reward-distill-dpo", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("reward-distill-dpo",), "equal")

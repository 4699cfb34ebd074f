"""Reward-aware preference optimisation against numbers worked by hand and the golden values."""

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


SCORES = {"chosen_score": torch.tensor([0.9, 0.3]), "rejected_score": torch.tensor([0.4, 0.3])}


def kl(p, q):
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_by_hand():
    """Targets 0.5 and 0, margins 0.15 and -0.075, as probabilities."""
    coins = [[1 / (1 + math.exp(-x)) for x in pair] for pair in ((0.5, 0.15), (0.0, -0.075))]
    assert loss_of(columns=SCORES)[0].tolist() == pytest.approx([kl(a, b) for a, b in coins])
    assert loss_of(columns=SCORES, variant="fwd_kl")[0].tolist() == pytest.approx([kl(b, a) for a, b in coins])
    assert loss_of(columns=SCORES, variant="sq")[0].tolist() == pytest.approx([0.35**2, 0.075**2])
    assert loss_of(columns=SCORES)[0][0].item() == pytest.approx(0.014741, abs=1e-6)


@pytest.mark.parametrize("variant", ["bwd_kl", "fwd_kl", "sq"])
def test_a_matched_margin_costs_nothing(variant):
    met = {"chosen_score": torch.tensor([0.15, -0.075]), "rejected_score": torch.zeros(2)}
    assert loss_of(columns=met, variant=variant)[0].tolist() == pytest.approx([0, 0], abs=1e-9)


def test_goldens():
    found = evaluate(GOLDENS, "rpo-reward-aware", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(
        (
            "rpo-reward-aware",
            "rpo-reward-aware:fwd_kl",
            "rpo-reward-aware:sq",
        ),
        "equal",
    )

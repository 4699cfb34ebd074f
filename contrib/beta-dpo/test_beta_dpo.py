"""Beta-DPO against numbers worked by hand and the golden values."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain.methods import load
from posttrain.views import Batch, Example, Sequence, Step, View, Views
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
    """Mean margin 0.375 against a usual 0.2: beta = 0.1 (1 + 0.6 * 0.175) = 0.1105."""
    columns = {"gap_mean": torch.full((2,), 0.2), "gap": torch.full((2,), 0.375), "weight": torch.ones(2)}
    loss, metrics = loss_of(columns=columns)
    assert metrics["beta_used"].tolist() == pytest.approx([0.1105, 0.1105])
    assert loss.tolist() == pytest.approx([-logsig(0.1105 * 1.5), -logsig(0.1105 * -0.75)])
    assert loss.mean().item() == pytest.approx(0.674573, abs=1e-6)


def step(*margins):
    """Pairs with these log-ratio margins, and the models that say so."""
    examples, values = [], {}
    for place, margin in enumerate(margins):
        rows = [Sequence(torch.tensor([place, side]), torch.tensor([False, True])) for side in (0, 1)]
        values |= {id(rows[0]): margin, id(rows[1]): 0.0}
        examples.append(Example({"chosen": [rows[0]], "rejected": [rows[1]]}))
    scale = {"policy": 1.0, "reference": 0.0}
    models = SimpleNamespace(logps=lambda some, model: [torch.tensor([scale[model] * values[id(r)]]) for r in some])
    return {"examples": examples, "models": models}


def test_outliers_are_left_out_and_the_mean_moves():
    """Ten pairs near 1 and one at 50 after a usual mean of 1: the one is never drawn. M = 0.9 * 1 + 0.1 * mean."""
    state = {"mean": 1.0, "spread": 0.1}
    config = METHOD.config({"keep": 0.5})
    found = METHOD.annotate(**step(*[1.0] * 10, 2.1), config=config, state=state)
    assert found["weight"][-1] == 0
    assert sorted(found["weight"].tolist()) == pytest.approx([0] * 5 + [11 / 6] * 6)
    assert found["gap"].tolist() == pytest.approx([1.0] * 11)
    assert state["mean"] == pytest.approx(0.9 + 0.1 * (12.1 / 11))


def test_beta_has_a_floor():
    columns = {"gap_mean": torch.full((2,), 100.0), "gap": torch.zeros(2), "weight": torch.ones(2)}
    assert loss_of(columns=columns)[1]["beta_used"].tolist() == pytest.approx([1e-3, 1e-3])


def test_goldens():
    found = evaluate(GOLDENS, "beta-dpo", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("beta-dpo",), "equal")

"""Paired KTO against numbers worked by hand and the golden values."""

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
    """Mean log-ratios 0.25 and -0.125: divergences 0.25 and 0. s(0.1) and s(0.075); s(-0.05) and s(0)."""
    kl = {"kl_chosen": torch.tensor([0.25, 0.25]), "kl_rejected": torch.zeros(2)}
    loss, _ = loss_of(columns=kl)
    sigmoid = [math.exp(logsig(x)) for x in (0.1, 0.075, -0.05, 0.0)]
    expected = [1 - (sigmoid[0] + sigmoid[1]) / 2, 1 - (sigmoid[2] + sigmoid[3]) / 2]
    assert loss.tolist() == pytest.approx(expected)
    assert loss.mean().item() == pytest.approx(0.492194, abs=1e-6)


def test_divergences_are_means_of_the_step_and_never_negative():
    rows = {}
    examples = []
    for chosen, rejected in ((1.0, -0.5), (-0.5, 0.25)):
        pair = [Sequence(torch.tensor([0, 1]), torch.tensor([False, True])) for _ in range(2)]
        rows |= {id(pair[0]): chosen, id(pair[1]): rejected}
        examples.append(Example({"chosen": [pair[0]], "rejected": [pair[1]]}))
    scale = {"policy": 1.0, "reference": 0.0}
    models = SimpleNamespace(logps=lambda some, model: [torch.tensor([scale[model] * rows[id(r)]]) for r in some])
    found = METHOD.annotate(examples=examples, models=models, config=METHOD.config({}), state={})
    assert found["kl_chosen"].tolist() == [0.25, 0.25]
    assert found["kl_rejected"].tolist() == [0, 0]


def test_goldens():
    found = evaluate(GOLDENS, "kto-pair", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("kto-pair",), "equal")

"""Paired BCO against numbers worked by hand and the golden values."""

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


def steps(*ratios):
    """Examples of one token an answer, and models that give these log-ratios, chosen then rejected."""
    examples, values = [], {}
    for pair in ratios:
        rows = [Sequence(torch.tensor([0, 1]), torch.tensor([False, True])) for _ in pair]
        examples.append(Example({"chosen": [rows[0]], "rejected": [rows[1]]}))
        values |= {id(row): ratio for row, ratio in zip(rows, pair, strict=True)}
    found = {"policy": 1.0, "reference": 0.0}
    models = SimpleNamespace(logps=lambda rows, model: [torch.tensor([found[model] * values[id(r)]]) for r in rows])
    return examples, models


def test_shift_is_the_mean_of_all_that_was_seen():
    """0.1 * (1 - 0.5) / 2 = 0.025; with a second pair 0.1 * (1 - 0.5 - 0.5 + 0.25) / 4 = 0.00625."""
    state, config = {}, METHOD.config({"beta": 0.1})
    for pair, expected in (((1.0, -0.5), 0.025), ((-0.5, 0.25), 0.00625)):
        examples, models = steps(pair)
        found = METHOD.annotate(examples=examples, models=models, config=config, state=state)["delta"]
        assert found.tolist() == pytest.approx([expected])
    fixed = METHOD.config({"beta": 0.1, "delta": 0.5})
    assert METHOD.annotate(examples=examples, models=models, config=fixed, state={})["delta"].tolist() == [0.5]


def test_by_hand():
    """Rewards 0.1 and -0.05: 0.644397 + 0.668460 = 1.312856; with a shift of 0.025 it is 1.312700."""
    for delta, expected in ((0.0, 1.312856), (0.025, -logsig(0.075) - logsig(0.075))):
        loss, _ = loss_of(columns={"delta": torch.full((2,), delta)}, beta=0.1)
        assert loss[0].item() == pytest.approx(expected, abs=1e-6)
    assert loss[0].item() == pytest.approx(1.3127, abs=1e-4)


def test_goldens():
    found = evaluate(GOLDENS, "bco-pair", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("bco-pair",), "equal")

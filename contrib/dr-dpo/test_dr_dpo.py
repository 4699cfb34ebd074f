"""Dr. DPO against numbers worked by hand and the golden values."""

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


def annotated(margins, **options):
    """Columns for one-token pairs with these log-ratio margins."""
    examples, values = [], {}
    for margin in margins:
        rows = [Sequence(torch.tensor([0, 1]), torch.tensor([False, True])) for _ in range(2)]
        values |= {id(rows[0]): margin, id(rows[1]): 0.0}
        examples.append(Example({"chosen": [rows[0]], "rejected": [rows[1]]}))
    scale = {"policy": 1.0, "reference": 0.0}
    models = SimpleNamespace(logps=lambda some, model: [torch.tensor([scale[model] * values[id(r)]]) for r in some])
    return METHOD.annotate(examples=examples, models=models, config=METHOD.config(options), state={})


def test_by_hand():
    """Losses 0.620957 and 0.731350: -log of the mean of sigmoid(0.15) and sigmoid(-0.075)."""
    loss, _ = loss_of(columns=annotated((1.5, -0.75)))
    likely = [math.exp(logsig(z)) for z in (0.15, -0.075)]
    assert loss.mean().item() == pytest.approx(-math.log(sum(likely) / 2), abs=1e-6)
    assert loss.mean().item() == pytest.approx(0.674631, abs=1e-6)
    assert annotated((1.5, -0.75))["weight"].tolist() == pytest.approx([2 * one / sum(likely) for one in likely])


def test_gradient_is_that_of_the_formula():
    """By finite differences of -b log mean exp(-l / b), taken as a whole."""

    def formula(logps):
        ratios = logps.sum(-1) - REFERENCE.chosen.logps.sum(-1)
        margin = 0.1 * (ratios - (POLICY.rejected.sum - REFERENCE.rejected.sum))
        return -0.5 * (torch.nn.functional.logsigmoid(margin) / 0.5).exp().mean().log()

    chosen = POLICY.chosen.logps.clone().requires_grad_()
    (expected,) = torch.autograd.grad(formula(chosen), chosen)
    policy = Views(chosen=View(chosen, POLICY.chosen.mask), rejected=POLICY.rejected)
    loss, _ = loss_of(policy, columns=annotated((1.5, -0.75), b=0.5), b=0.5)
    (found,) = torch.autograd.grad(loss.mean(), chosen)
    assert found.flatten().tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-7)


def test_goldens():
    found = evaluate(GOLDENS, "dr-dpo", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("dr-dpo",), "equal")

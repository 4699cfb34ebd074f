import math
from types import SimpleNamespace

import pytest
import torch
from posttrain.contract.views import Example, Sequence, View, Views
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig, method_beside

METHOD = method_beside(__file__)


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


def test_by_hand(call_loss):
    """Losses 0.620957 and 0.731350: -log of the mean of sigmoid(0.15) and sigmoid(-0.075)."""
    loss, _ = call_loss(POLICY, REFERENCE, columns=annotated((1.5, -0.75)))
    likely = [math.exp(logsig(z)) for z in (0.15, -0.075)]
    assert loss.mean().item() == pytest.approx(-math.log(sum(likely) / 2), abs=1e-6)
    assert loss.mean().item() == pytest.approx(0.674631, abs=1e-6)
    assert annotated((1.5, -0.75))["weight"].tolist() == pytest.approx([2 * one / sum(likely) for one in likely])


def test_gradient_is_that_of_the_formula(call_loss):
    """By finite differences of -b log mean exp(-l / b), taken as a whole."""

    def formula(logps):
        ratios = logps.sum(-1) - REFERENCE.chosen.logps.sum(-1)
        margin = 0.1 * (ratios - (POLICY.rejected.sum - REFERENCE.rejected.sum))
        return -0.5 * (torch.nn.functional.logsigmoid(margin) / 0.5).exp().mean().log()

    chosen = POLICY.chosen.logps.clone().requires_grad_()
    (expected,) = torch.autograd.grad(formula(chosen), chosen)
    policy = Views(chosen=View(chosen, POLICY.chosen.mask), rejected=POLICY.rejected)
    loss, _ = call_loss(policy, REFERENCE, columns=annotated((1.5, -0.75), b=0.5), b=0.5)
    (found,) = torch.autograd.grad(loss.mean(), chosen)
    assert found.flatten().tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-7)

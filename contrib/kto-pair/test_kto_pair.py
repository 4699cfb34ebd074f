import math
from types import SimpleNamespace

import pytest
import torch
from posttrain.contract.views import Example, Sequence
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def test_by_hand(call_loss):
    """Mean log-ratios 0.25 and -0.125: divergences 0.25 and 0. s(0.1) and s(0.075); s(-0.05) and s(0)."""
    kl = {"kl_chosen": torch.tensor([0.25, 0.25]), "kl_rejected": torch.zeros(2)}
    loss, _ = call_loss(POLICY, REFERENCE, columns=kl)
    sigmoid = [math.exp(logsig(x)) for x in (0.1, 0.075, -0.05, 0.0)]
    expected = [1 - (sigmoid[0] + sigmoid[1]) / 2, 1 - (sigmoid[2] + sigmoid[3]) / 2]
    assert loss.tolist() == pytest.approx(expected)
    assert loss.mean().item() == pytest.approx(0.492194, abs=1e-6)


def test_divergences_are_means_of_the_step_and_never_negative(method):
    rows = {}
    examples = []
    for chosen, rejected in ((1.0, -0.5), (-0.5, 0.25)):
        pair = [Sequence(torch.tensor([0, 1]), torch.tensor([False, True])) for _ in range(2)]
        rows |= {id(pair[0]): chosen, id(pair[1]): rejected}
        examples.append(Example({"chosen": [pair[0]], "rejected": [pair[1]]}))
    scale = {"policy": 1.0, "reference": 0.0}
    models = SimpleNamespace(logps=lambda some, model: [torch.tensor([scale[model] * rows[id(r)]]) for r in some])
    found = method.annotate(examples=examples, models=models, config=method.config({}), state={})
    assert found["kl_chosen"].tolist() == [0.25, 0.25]
    assert found["kl_rejected"].tolist() == [0, 0]

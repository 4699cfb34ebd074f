"""Primal-dual unlearning against numbers worked by hand and the shared golden values."""

from pathlib import Path
from types import SimpleNamespace

import posttrain_method_pdu as pdu
import pytest
import torch
from posttrain.testing.goldens import evaluate
from posttrain.testing.numbers import loss_of
from posttrain.views import Example, Sequence

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / ".." / "shared" / "methods" / "goldens-offline.json"


def test_by_hand():
    """Logits 3, 0, 0: (3 - 1)^2 = 4. Retain 2 with budget 0.5 and lambda 2: 3."""
    inputs = {"policy_forget_logits": [[3.0, 0.0, 0.0]], "forget_labels": [0], "retain_tok": [[-2.0]]}
    found = loss_of(HERE, inputs, initial_multiplier=2.0, retain_budget=0.5)
    assert found.loss == pytest.approx(7)
    # 2 * 2 * (1 - 1/3) and 2 * 2 * (-1/3)
    assert found.gradients["policy_forget_logits"][0][0] == pytest.approx([8 / 3, -4 / 3, -4 / 3])
    assert found.gradients["retain_tok"][0] == pytest.approx([-2])


def test_the_multiplier_rises_while_the_budget_is_exceeded():
    """Retain losses 1, 1.5 and 0.2; without an option the budget is the first: lambda 1, 1, 1.5 and then 0.7."""
    row = Sequence(torch.tensor([1, 2]), torch.tensor([False, True]))
    examples, state, seen = [Example({"forget": [row], "retain": [row]})], {}, []
    for nll in (1.0, 1.5, 0.2, 0.2):
        models = SimpleNamespace(logps=lambda rows, model, nll=nll: [torch.tensor([-nll])])
        seen.append(pdu.posttrain_annotate(examples, models, pdu.Config(), state)["multiplier"].item())
    assert seen == pytest.approx([1, 1, 1.5, 0.7])


@pytest.mark.skipif(not GOLDENS.exists(), reason="the shared golden values are not here")
def test_goldens():
    results = evaluate(GOLDENS, "pdu", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]

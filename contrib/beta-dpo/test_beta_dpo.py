from types import SimpleNamespace

import pytest
import torch
from posttrain.contract.views import Example, Sequence
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def test_by_hand(call_loss):
    """Mean margin 0.375 against a usual 0.2: beta = 0.1 (1 + 0.6 * 0.175) = 0.1105."""
    columns = {"gap_mean": torch.full((2,), 0.2), "gap": torch.full((2,), 0.375), "weight": torch.ones(2)}
    loss, metrics = call_loss(POLICY, REFERENCE, columns=columns)
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


def test_outliers_are_left_out_and_the_mean_moves(method):
    """Ten pairs near 1 and one at 50 after a usual mean of 1: the one is never drawn. M = 0.9 * 1 + 0.1 * mean."""
    state = {"mean": 1.0, "spread": 0.1}
    config = method.config({"keep": 0.5})
    found = method.annotate(**step(*[1.0] * 10, 2.1), config=config, state=state)
    assert found["weight"][-1] == 0
    assert sorted(found["weight"].tolist()) == pytest.approx([0] * 5 + [11 / 6] * 6)
    assert found["gap"].tolist() == pytest.approx([1.0] * 11)
    assert state["mean"] == pytest.approx(0.9 + 0.1 * (12.1 / 11))


def test_beta_has_a_floor(call_loss):
    columns = {"gap_mean": torch.full((2,), 100.0), "gap": torch.zeros(2), "weight": torch.ones(2)}
    assert call_loss(POLICY, REFERENCE, columns=columns)[1]["beta_used"].tolist() == pytest.approx([1e-3, 1e-3])

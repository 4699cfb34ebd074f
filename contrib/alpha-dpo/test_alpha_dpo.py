from types import SimpleNamespace

import pytest
import torch
from posttrain.contract.views import Example, Sequence
from posttrain_testkit.by_hand import POLICY, REFERENCE


def test_by_hand(call_loss):
    """u = -0.1, excess -0.1 + 0.45 = 0.35, z = (0.35 - 0.1) / 0.5 = 0.5: 2.5 * (-0.1 - 0.4 - 0.05) = -1.375."""
    columns = {"excess": torch.tensor([0.35, 0.0]), "ema_mean": torch.full((2,), 0.1), "ema_std": torch.full((2,), 0.5)}
    loss, metrics = call_loss(POLICY, REFERENCE, columns=columns, gamma=0.4)
    assert loss[0].item() == pytest.approx(1.600413, abs=1e-6)
    assert metrics["target"].tolist() == pytest.approx([2.5 * 0.45, 2.5 * (0.4 - 0.02)])


def test_moments_move_by_a_tenth(method):
    """One-token pairs with excess 1 and 3, mean 2 and deviation 1; then -8 twice: 0.9 * 2 - 0.8 = 1 and 0.9."""
    state = {}
    for excesses, mean, std in (((1.0, 3.0), 2.0, 1.0), ((-8.0, -8.0), 1.0, 0.9)):
        examples, values = [], {}
        for excess in excesses:
            rows = [Sequence(torch.tensor([0, 1]), torch.tensor([False, True])) for _ in range(2)]
            values |= {id(rows[0]): excess, id(rows[1]): 0.0}
            examples.append(Example({"chosen": [rows[0]], "rejected": [rows[1]]}))
        scale = {"policy": 1.0, "reference": 0.0}
        models = SimpleNamespace(logps=lambda some, model: [torch.tensor([scale[model] * values[id(r)]]) for r in some])  # noqa: B023
        found = method.annotate(examples=examples, models=models, config=method.config({}), state=state)
        assert found["excess"].tolist() == pytest.approx(list(excesses))
        assert found["ema_mean"].tolist() == pytest.approx([mean] * 2)
        assert found["ema_std"].tolist() == pytest.approx([std] * 2)

"""Alpha-DPO against numbers worked by hand and the golden values."""

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


def test_by_hand():
    """u = -0.1, excess -0.1 + 0.45 = 0.35, z = (0.35 - 0.1) / 0.5 = 0.5: 2.5 * (-0.1 - 0.4 - 0.05) = -1.375."""
    columns = {"excess": torch.tensor([0.35, 0.0]), "ema_mean": torch.full((2,), 0.1), "ema_std": torch.full((2,), 0.5)}
    loss, metrics = loss_of(columns=columns, gamma=0.4)
    assert loss[0].item() == pytest.approx(1.600413, abs=1e-6)
    assert metrics["target"].tolist() == pytest.approx([2.5 * 0.45, 2.5 * (0.4 - 0.02)])


def test_moments_move_by_a_tenth():
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
        found = METHOD.annotate(examples=examples, models=models, config=METHOD.config({}), state=state)
        assert found["excess"].tolist() == pytest.approx(list(excesses))
        assert found["ema_mean"].tolist() == pytest.approx([mean] * 2)
        assert found["ema_std"].tolist() == pytest.approx([std] * 2)


def test_goldens():
    found = evaluate(GOLDENS, "alpha-dpo", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("alpha-dpo",), "equal")

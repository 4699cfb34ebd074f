from types import SimpleNamespace

import pytest
import torch
from posttrain.contract.views import Example, Sequence
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


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


def test_shift_is_the_mean_of_all_that_was_seen(method):
    """0.1 * (1 - 0.5) / 2 = 0.025; with a second pair 0.1 * (1 - 0.5 - 0.5 + 0.25) / 4 = 0.00625."""
    state, config = {}, method.config({"beta": 0.1})
    for pair, expected in (((1.0, -0.5), 0.025), ((-0.5, 0.25), 0.00625)):
        examples, models = steps(pair)
        found = method.annotate(examples=examples, models=models, config=config, state=state)["delta"]
        assert found.tolist() == pytest.approx([expected])
    fixed = method.config({"beta": 0.1, "delta": 0.5})
    assert method.annotate(examples=examples, models=models, config=fixed, state={})["delta"].tolist() == [0.5]


def test_by_hand(call_loss):
    """Rewards 0.1 and -0.05: 0.644397 + 0.668460 = 1.312856; with a shift of 0.025 it is 1.312700."""
    for delta, expected in ((0.0, 1.312856), (0.025, -logsig(0.075) - logsig(0.075))):
        loss, _ = call_loss(POLICY, REFERENCE, columns={"delta": torch.full((2,), delta)}, beta=0.1)
        assert loss[0].item() == pytest.approx(expected, abs=1e-6)
    assert loss[0].item() == pytest.approx(1.3127, abs=1e-4)

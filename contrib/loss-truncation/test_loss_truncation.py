from types import SimpleNamespace

import posttrain_method_loss_truncation as truncation
import pytest
import torch
from posttrain.contract.views import Example, Sequence


def test_by_hand(loss_of):
    """Losses 2.5, 1, 4 and 1.5, a quarter to drop: the quantile 0.75 is 2.875, so 4 is left out: 5 / 3."""
    inputs = {"policy_tok": [[-2.5], [-1.0], [-3.0, -5.0], [-1.5]]}
    found = loss_of(inputs, drop_fraction=0.25)
    assert found.loss == pytest.approx(5 / 3)
    assert found.metrics["dropped"].tolist() == [0, 0, 1, 0]
    assert found.gradients["policy_tok"][2] == pytest.approx([0, 0])


def test_threshold_remembers_earlier_steps_and_waits_for_the_warm_up():
    row = Sequence(torch.tensor([1, 2]), torch.tensor([False, True]))
    examples, state = [Example({"completion": [row]})] * 2, {}
    config = truncation.Config(drop_fraction=0.5, wait_steps=1)
    kept = []
    for losses in ((9.0, 8.0), (1.0, 2.0), (3.0, 9.0)):
        models = SimpleNamespace(logps=lambda rows, model, given=losses: [torch.tensor([-one]) for one in given])
        kept.append(truncation.posttrain_annotate(examples, models, config, state)["row_weight"].tolist())
    # medians: none while warming up, then of (9, 8, 1, 2) 5, then of all six 5.5
    assert kept == [[1, 1], [1, 1], [2, 0]]

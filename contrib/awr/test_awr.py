"""Advantage-weighted regression against numbers worked by hand and the golden values."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain.methods import load
from posttrain.views import Batch, Step, View, Views
from posttrain_testkit.goldens.compare import evaluate

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "online.json"
METHOD = load(str(HERE))
D = torch.float64

MASK = torch.tensor([[True, True], [True, False]])


def loss_of(new, columns, reference=None, **options):
    view = View(new, MASK, entropy=torch.ones_like(new))
    return METHOD.loss(
        batch=Batch(len(new), columns),
        policy=Views(completion=view),
        reference=None if reference is None else Views(completion=View(reference, MASK)),
        config=METHOD.config(options),
        step=Step(0, 1),
    )


def worked_out(rewards, group, columns=None, **options):
    rollouts = SimpleNamespace(group=torch.tensor(group), columns=columns or {})
    config = METHOD.config({"beta": 1.0} | options)
    return METHOD.advantages(rewards=torch.tensor(rewards, dtype=D), rollouts=rollouts, config=config, state={})


def test_weights_by_hand():
    """Half above and below the mean: e^(1/2), e^(-1/2), at beta 1/2 e and 1/e; a lone answer has 1."""
    assert worked_out([1, 0, 7], [0, 0, 1])["advantages"].tolist() == pytest.approx([math.exp(0.5), math.exp(-0.5), 1])
    assert worked_out([1, 0], [0, 0], beta=0.5)["advantages"].tolist() == pytest.approx([math.e, 1 / math.e])


def test_weights_are_bounded():
    found = worked_out([1e6, -1e6], [0, 0], max_weight=3.0)
    assert found["advantages"].tolist() == [3, 0]
    assert found["effective_share"].tolist() == [0.5, 0.5]


def test_a_column_may_say_what_is_expected():
    found = worked_out([1.0, 1.0], [0, 0], {"expected_reward": [1.0, 0.5]})["advantages"].tolist()
    assert found == pytest.approx([1, math.exp(0.5)])


def test_a_completion_without_a_reward_teaches_nothing():
    """G9."""
    assert worked_out([1.0, math.nan], [0, 0])["advantages"].tolist() == [1, 0]


def test_both_means():
    new = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=D)
    columns = {"advantages": torch.tensor([2.0, 1.0], dtype=D), "effective_share": torch.ones(2, dtype=D)}
    assert loss_of(new, columns)[0].values[MASK].tolist() == [2, 4, 0.5]
    assert loss_of(new, columns, aggregation="sequence")[0].tolist() == [3, 0.5]


def test_goldens():
    (result,) = evaluate(GOLDENS, "awr", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]

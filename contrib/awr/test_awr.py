import math
from types import SimpleNamespace

import pytest
import torch
from posttrain_testkit.by_hand import MASK, OLD, method_beside, tensor

METHOD = method_beside(__file__)
D = torch.float64


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


def test_both_means(call_loss):
    columns = {"advantages": tensor(2.0, 1.0), "effective_share": torch.ones(2, dtype=D)}
    assert call_loss(OLD, columns=columns, mask=MASK)[0].values[MASK].tolist() == [2, 4, 0.5]
    assert call_loss(OLD, columns=columns, aggregation="sequence", mask=MASK)[0].tolist() == [3, 0.5]

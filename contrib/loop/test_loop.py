import math
from types import SimpleNamespace

import pytest
import torch
from posttrain_testkit.by_hand import check_clipped_tokens, method_beside

METHOD = method_beside(__file__)


def worked_out(rewards, group):
    rollouts = SimpleNamespace(group=torch.tensor(group))
    config = METHOD.config({})
    return METHOD.advantages(
        rewards=torch.tensor(rewards, dtype=torch.float64), rollouts=rollouts, config=config, state={}
    ).tolist()


def test_baseline_is_the_mean_of_the_others():
    """G21. {1, 2, 6}: 1 - 4, 2 - 3.5, 6 - 1.5. Groups may be interleaved: {0, 1} gives -1 and 1."""
    assert worked_out([1, 0, 2, 6, 1], [5, 9, 5, 5, 9]) == pytest.approx([-3, -1, -1.5, 4.5, 1])


def test_a_completion_without_a_reward_teaches_nothing():
    """G9, G10."""
    assert worked_out([1, math.nan, 4], [0, 0, 0]) == [-3, 0, 3]
    assert worked_out([2.0], [0]) == [0]


def test_clipped_policy_gradient_of_each_token(call_loss):
    check_clipped_tokens(call_loss)

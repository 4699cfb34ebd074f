import math
from types import SimpleNamespace

import pytest
import torch
from posttrain_testkit.by_hand import check_clipped_tokens, method_beside

METHOD = method_beside(__file__)
D = torch.float64


def of_step(rewards, group, lengths, finished=None):
    return SimpleNamespace(
        group=torch.tensor(group),
        lengths=torch.tensor(lengths),
        finished=torch.tensor(finished or [True] * len(group)),
        items=list(range(len(group))),
    )


def worked_out(rewards, *about, **options):
    config = METHOD.config(options)
    rollouts = of_step(rewards, *about)
    return METHOD.advantages(rewards=torch.tensor(rewards, dtype=D), rollouts=rollouts, config=config, state={})


def test_what_does_not_end_in_time_earns_nothing():
    found = worked_out([1.0, 1.0, 1.0], [0, 0, 0], [3, 9, 3], [True, True, False], truncation_length=5)
    assert found["shaped_rewards"].tolist() == [1, 0, 0]
    assert found["cut_off"].tolist() == [0, 1, 1]


def test_the_deviation_is_that_of_the_step():
    """{1, 0} and {3, 0}: differences 1/2, -1/2, 3/2, -3/2, with sum of squares 5 and deviation sqrt(5 / 3)."""
    found = worked_out([1.0, 0.0, 3.0, 0.0], [0, 0, 1, 1], [1] * 4, advantage_epsilon=0.0)
    expected = [value / math.sqrt(5 / 3) for value in (0.5, -0.5, 1.5, -1.5)]
    assert found["advantages"].tolist() == pytest.approx(expected)


def test_dull_groups_are_replaced():
    """The second group differs only until its long answer earns nothing."""
    rewards, config = torch.tensor([1.0, 0.0, 1.0, 0.0]), METHOD.config({"truncation_length": 5})
    rollouts = of_step(rewards, [0, 0, 1, 1], [2, 2, 9, 2])
    found = METHOD.select(rollouts=rollouts, rewards=rewards, config=config, state={})
    assert (found.rollouts, found.refill) == ([0, 1], True)


def test_a_completion_without_a_reward_teaches_nothing():
    """G9."""
    found = worked_out([1.0, math.nan, 0.0], [0, 0, 0], [1, 1, 1], advantage_epsilon=0.0)["advantages"].tolist()
    assert found == pytest.approx([0.707107, 0, -0.707107], abs=1e-6)


def test_clipped_policy_gradient_of_each_token(call_loss):
    check_clipped_tokens(call_loss, "shaped_rewards", "cut_off", epsilon_high=0.2)

import math
from types import SimpleNamespace

import torch
from posttrain_testkit.by_hand import check_clipped_tokens

D = torch.float64


def step_of(rewards, group):
    return torch.tensor(rewards, dtype=D), SimpleNamespace(group=torch.tensor(group), items=list(range(len(group))))


def test_mixed_groups_are_kept(method):
    rewards, rollouts = step_of([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [0, 0, 1, 1, 2, 2])
    found = method.select(rollouts=rollouts, rewards=rewards, config=method.config({}), state={})
    assert found.rollouts == [2, 3]
    rewards, rollouts = step_of([1.0, 1.0], [0, 0])
    assert method.select(rollouts=rollouts, rewards=rewards, config=method.config({}), state={}).rollouts is None


def test_plus_and_minus_one(method):
    rewards, rollouts = step_of([1.0, 0.0, 0.2, math.nan, 1.0, 1.0], [0, 0, 0, 0, 1, 1])
    found = method.advantages(rewards=rewards, rollouts=rollouts, config=method.config({}), state={})
    assert found.tolist() == [1, -1, 1, 0, 0, 0]


def test_clipped_policy_gradient_of_each_token(call_loss):
    check_clipped_tokens(call_loss)

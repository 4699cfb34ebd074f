import math
from types import SimpleNamespace

import pytest
import torch
from posttrain_testkit.by_hand import check_clipped_tokens, method_beside

METHOD = method_beside(__file__)
D = torch.float64


def worked_out(rewards, group, **options):
    rollouts = SimpleNamespace(group=torch.tensor(group))
    config = METHOD.config(options)
    return METHOD.advantages(rewards=torch.tensor(rewards, dtype=D), rollouts=rollouts, config=config, state={})


def test_solved_groups_count_less():
    """Three of four right: weight 1/4 or, with gamma 1/2, 1/2; one of four: 3/4."""
    rewards, group = [1, 1, 1, 0, 1, 0, 0, 0], [0] * 4 + [1] * 4
    found = worked_out(rewards, group, gamma=1.0, advantage_epsilon=0.0)
    assert found["focal_weight"].tolist() == [0.25] * 4 + [0.75] * 4
    assert found["advantages"].tolist() == pytest.approx([0.125] * 3 + [-0.375] + [1.125] + [-0.375] * 3)
    assert worked_out(rewards, group, gamma=0.5)["focal_weight"][0].item() == pytest.approx(0.5)


def test_without_gamma_it_is_grpo():
    """Reward 1 of {1, 0, 0, 0}: 3/4 over a deviation of 1/2."""
    assert worked_out([1, 0, 0, 0], [0] * 4, gamma=0.0, advantage_epsilon=0.0)["advantages"][0].item() == 1.5


def test_a_completion_without_a_reward_teaches_nothing():
    """G9."""
    found = worked_out([1.0, math.nan, 0.0], [0, 0, 0], gamma=0.0, advantage_epsilon=0.0)["advantages"].tolist()
    assert found == pytest.approx([0.707107, 0, -0.707107], abs=1e-6)


def test_clipped_policy_gradient_of_each_token(call_loss):
    check_clipped_tokens(call_loss, "focal_weight")

from types import SimpleNamespace

import pytest
import torch
from posttrain_testkit.by_hand import check_clipped_tokens, method_beside

METHOD = method_beside(__file__)


def step_of(rewards, group):
    rollouts = SimpleNamespace(group=torch.tensor(group), items=list(range(len(rewards))))
    return {"rewards": torch.tensor(rewards, dtype=torch.float64), "rollouts": rollouts, "state": {}}


def chosen(rewards, group, **options):
    return METHOD.select(config=METHOD.config(options), **step_of(rewards, group)).rollouts


def test_the_most_uncertain_prompts_are_kept():
    """Deviations 0, 2 / sqrt(2) and 1 / sqrt(2): a third is the second group, two thirds are the last two."""
    rewards, group = [1.0, 1.0, 0.0, 2.0, 0.0, 1.0], [0, 0, 1, 1, 2, 2]
    assert chosen(rewards, group, keep_fraction=0.34) == [2, 3]
    assert chosen(rewards, group, keep_fraction=0.67) == [2, 3, 4, 5]
    assert chosen(rewards, group, keep_fraction=0.01) == [2, 3]
    assert chosen(rewards, group, keep_fraction=1.0) == [0, 1, 2, 3, 4, 5]


def test_kept_rewards_are_compared():
    found = METHOD.advantages(config=METHOD.config({"advantage_epsilon": 0.0}), **step_of([1.0, 0.0], [0, 0]))
    assert found["advantages"].tolist() == pytest.approx([0.707107, -0.707107], abs=1e-6)
    assert found["reward_spread"].tolist() == pytest.approx([0.707107] * 2, abs=1e-6)


def test_clipped_policy_gradient_of_each_token(call_loss):
    check_clipped_tokens(call_loss, "reward_spread", epsilon_high=0.2)

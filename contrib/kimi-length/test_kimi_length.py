import math
from types import SimpleNamespace

import pytest
import torch
from posttrain_testkit.by_hand import check_clipped_tokens, method_beside

METHOD = method_beside(__file__)
D = torch.float64


def worked_out(rewards, group, lengths, **options):
    rollouts = SimpleNamespace(
        group=torch.tensor(group), lengths=torch.tensor(lengths), finished=torch.ones(len(group), dtype=torch.bool)
    )
    config = METHOD.config(options)
    found = METHOD.advantages(rewards=torch.tensor(rewards, dtype=D), rollouts=rollouts, config=config, state={})
    return found["shaped_rewards"].tolist(), found["advantages"].tolist()


def test_right_answers_gain_and_lose_wrong_ones_only_lose():
    """Lengths 2, 4, 6: lambda 1/2, 0, -1/2. Groups may be interleaved."""
    shaped, _ = worked_out([1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1], [2, 2, 4, 4, 6, 6])
    assert shaped == pytest.approx([1.5, 0, 1, 0, 0.5, -0.5])
    shaped, _ = worked_out([1, 1], [0, 0], [2, 6], weight=0.2)
    assert shaped == pytest.approx([1.1, 0.9])


def test_equal_lengths_change_nothing():
    shaped, _ = worked_out([1, 0, 1], [0, 0, 1], [7, 7, 3])
    assert shaped == [1, 0, 1]


def test_a_completion_without_a_reward_teaches_nothing():
    """G9."""
    _, found = worked_out([1.0, math.nan, 0.0], [0, 0, 0], [5, 5, 5], advantage_epsilon=0.0)
    assert found == pytest.approx([0.707107, 0, -0.707107], abs=1e-6)


def test_clipped_policy_gradient_of_each_token(call_loss):
    check_clipped_tokens(call_loss, "shaped_rewards", "length_reward")

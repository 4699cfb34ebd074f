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


def test_short_right_answers_lose_least():
    """Right ones of 2, 4, 6 tokens: mean 4, deviation the root of 8/3; a wrong one has no say in the mean."""
    shaped, _ = worked_out([1, 1, 1, 0], [0] * 4, [2, 4, 6, 100], alpha=0.2)
    s = 1 / (1 + math.exp(2 / math.sqrt(8 / 3)))
    assert shaped == pytest.approx([1 - 0.2 * s, 0.9, 1 - 0.2 * (1 - s), 0])


def test_the_deviation_has_the_divisor_n():
    """Two right ones of 2 and 3 tokens: mean 2.5, deviation 0.5, sigmoids of -1 and 1."""
    shaped, _ = worked_out([1, 1], [0, 0], [2, 3], alpha=0.2)
    assert shaped == pytest.approx([0.946212, 0.853788], abs=1e-6)


def test_baseline_is_the_mean_of_the_others():
    """0.95 (the only right one: sigmoid of 0) against 0 and 0."""
    shaped, found = worked_out([1, 0, 0], [0, 0, 0], [3, 5, 5], alpha=0.1)
    assert shaped == pytest.approx([0.95, 0, 0])
    assert found == pytest.approx([0.95, -0.475, -0.475])


def test_without_right_answers_there_is_nothing_to_learn():
    assert worked_out([0, 0], [0, 0], [3, 5])[1] == [0, 0]


def test_a_completion_without_a_reward_teaches_nothing():
    """G9."""
    _, found = worked_out([1.0, math.nan, 0.0], [0, 0, 0], [1, 1, 1], alpha=0.0)
    assert found == [1, 0, -1]


def test_clipped_policy_gradient_of_each_token(call_loss):
    check_clipped_tokens(call_loss, "shaped_rewards", "correct_length")

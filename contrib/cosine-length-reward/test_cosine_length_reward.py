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


def test_corners_and_middle():
    """Longest 10. Right: 1 at length 0, 3/4 half-way, 1/2 at the end and beyond. Wrong: -1, -3/4, -1/2."""
    lengths = [0, 5, 10, 20] * 2
    shaped, _ = worked_out([1] * 4 + [0] * 4, [0] * 8, lengths, longest=10)
    assert shaped == pytest.approx([1, 0.75, 0.5, 0.5, -1, -0.75, -0.5, -0.5])


def test_every_right_answer_is_worth_more_than_any_wrong_one():
    shaped, found = worked_out([1, 0], [0, 0], [9, 9], longest=10)
    assert shaped[0] > 0 > shaped[1]
    assert found[0] > 0 > found[1]


def test_the_length_follows_the_run():
    from posttrain.settings import Settings

    assert METHOD.config({}, Settings(max_new_tokens=50)).longest == 50


def test_a_completion_without_a_reward_teaches_nothing():
    """G9."""
    _, found = worked_out([1.0, math.nan, 0.0], [0, 0, 0], [5, 5, 5], longest=10)
    assert found == pytest.approx([0.707107, 0, -0.707107], abs=2e-6)


def test_clipped_policy_gradient_of_each_token(call_loss):
    check_clipped_tokens(call_loss, "shaped_rewards", "correct")

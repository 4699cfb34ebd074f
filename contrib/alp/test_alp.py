import math
from types import SimpleNamespace

import pytest
import torch
from posttrain_testkit.by_hand import MASK, NEW, OLD, method_beside, tensor

METHOD = method_beside(__file__)
D = torch.float64


def worked_out(rewards, group, lengths, **options):
    rollouts = SimpleNamespace(
        group=torch.tensor(group), lengths=torch.tensor(lengths), finished=torch.ones(len(group), dtype=torch.bool)
    )
    config = METHOD.config(options)
    found = METHOD.advantages(rewards=torch.tensor(rewards, dtype=D), rollouts=rollouts, config=config, state={})
    return found["shaped_rewards"].tolist(), found["advantages"].tolist()


def test_easy_prompts_pay_more_for_length():
    """beta 0.1. Two of four solved: 0.1 * L * 1/2. None of two: the least, 0.1 * L * 1/2 again. All of two: all."""
    shaped, _ = worked_out([1, 1, 0, 0, 0, 0, 1, 1], [0] * 4 + [1] * 2 + [2] * 2, [2, 4, 6, 8, 2, 4, 2, 4], beta=0.1)
    assert shaped == pytest.approx([0.9, 0.8, -0.3, -0.4, -0.1, -0.2, 0.8, 0.6])


def test_of_two_right_answers_the_shorter_is_better():
    """1 - 0.2 and 1 - 0.4: half a difference apart from their mean, in deviations of sqrt(0.02)."""
    _, found = worked_out([1, 1], [0, 0], [2, 4], beta=0.1, advantage_epsilon=0.0)
    assert found == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)])


def test_a_completion_without_a_reward_teaches_nothing():
    """G9."""
    _, found = worked_out([1.0, math.nan, 0.0], [0, 0, 0], [1, 1, 1], advantage_epsilon=0.0)
    assert found == pytest.approx([0.707107, 0, -0.707107], abs=1e-6)


def test_clipped_policy_gradient_of_each_token(call_loss):
    """A = 2 with ratios 1 and 3/2: -2 and -2.4, as 1.5 is clipped to 1.2. A = -1 with 1/2: clipped to 0.8."""
    columns = {
        "advantages": tensor(2.0, -1.0),
        "old_logps": OLD,
        "shaped_rewards": torch.zeros(2, dtype=D),
        "solve_rate": torch.ones(2, dtype=D),
    }
    loss, metrics = call_loss(NEW, columns=columns, mask=MASK)
    assert loss.mask is MASK
    assert loss.values[MASK].tolist() == pytest.approx([-2, -2.4, 0.8])
    assert metrics["clip_high"].values[MASK].tolist() == [0, 1, 0]
    assert metrics["clip_low"].values[MASK].tolist() == [0, 0, 1]

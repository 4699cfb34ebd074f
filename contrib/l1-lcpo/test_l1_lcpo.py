import math
from types import SimpleNamespace

import pytest
import torch
from posttrain_testkit.by_hand import check_clipped_tokens, method_beside

METHOD = method_beside(__file__)
D = torch.float64


def worked_out(rewards, lengths, asked=None, **options):
    rollouts = SimpleNamespace(
        group=torch.zeros(len(rewards)),
        lengths=torch.tensor(lengths),
        columns={} if asked is None else {"n_gold": asked},
    )
    config = METHOD.config(options)
    found = METHOD.advantages(rewards=torch.tensor(rewards, dtype=D), rollouts=rollouts, config=config, state={})
    return found["shaped_rewards"].tolist(), found["advantages"].tolist()


def test_exact_punishes_both_sides():
    shaped, _ = worked_out([1.0, 1.0, 0.0], [8, 13, 10], [10, 10, 10], alpha=0.1)
    assert shaped == pytest.approx([0.8, 0.7, 0])


def test_max_punishes_what_is_too_long():
    """delta 1/2, alpha 0.1: 0.5 at the bound, 1 from 5 tokens below it, 0 from 5 above; wrong ones stay 0."""
    shaped, _ = worked_out([1.0] * 4 + [0.0], [10, 5, 2, 16, 3], [10] * 5, alpha=0.1, mode="max")
    assert shaped == pytest.approx([0.5, 1, 1, 0, 0])


def test_rows_that_do_not_say_have_the_options_length():
    shaped, _ = worked_out([1.0, 1.0], [4, 4], [None, 6], alpha=0.1, n_gold=5)
    assert shaped == pytest.approx([0.9, 0.8])
    assert worked_out([1.0], [4], n_gold=4)[0] == [1]


def test_a_completion_without_a_reward_teaches_nothing():
    """G9."""
    _, found = worked_out([1.0, math.nan, 0.0], [5, 5, 5], advantage_epsilon=0.0)
    assert found == pytest.approx([0.707107, 0, -0.707107], abs=1e-6)


def test_clipped_policy_gradient_of_each_token(call_loss):
    check_clipped_tokens(call_loss, "shaped_rewards", "length_error")

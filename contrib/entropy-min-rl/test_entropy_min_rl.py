from types import SimpleNamespace

import pytest
import torch
from posttrain_testkit.by_hand import check_clipped_tokens, method_beside, tensor

METHOD = method_beside(__file__)


def worked_out(**options):
    rollouts = SimpleNamespace(
        group=torch.tensor([0, 0]),
        mask=torch.tensor([[True, True], [True, False]]),
        old_logps=tensor([-1.0, -2.0], [-2.0, -9.0]),
        old=lambda name: {"entropy": tensor([0.5, 1.5], [0.5, 9.0])}[name],
    )
    config = METHOD.config({"advantage_epsilon": 0.0} | options)
    found = METHOD.advantages(rewards=torch.zeros(2), rollouts=rollouts, config=config, state={})
    return found["shaped_rewards"].tolist(), found["advantages"].tolist()


def test_rewards_by_hand():
    """Mean entropies 1 and 1/2, and log-probabilities -3 and -2; padding does not count."""
    assert worked_out()[0] == [-1, -0.5]
    assert worked_out(certainty="log-probability")[0] == [-3, -2]


def test_doubt_is_worth_less():
    assert worked_out()[1] == pytest.approx([-0.707107, 0.707107], abs=1e-6)


def test_clipped_policy_gradient_of_each_token(call_loss):
    check_clipped_tokens(call_loss, "shaped_rewards")

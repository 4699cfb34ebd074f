from types import SimpleNamespace

import pytest
import torch
from posttrain_testkit.by_hand import check_clipped_tokens, tensor


def test_self_certainty_by_hand(method):
    """p = (3/4, 1/4): KL(U || p) = 1/2 ln(2/3) + 1/2 ln 2 = 0.143841; of the uniform distribution 0."""
    logits = tensor([0.75, 0.25], [0.5, 0.5]).log() + 3
    found = method.token_statistics(logits=logits, labels=torch.zeros(2, dtype=torch.long), config=method.config({}))
    assert found["self_certainty"].tolist() == pytest.approx([0.143841, 0], abs=1e-6)


def test_certain_completions_are_worth_more(method):
    """Means 2 (of 1 and 3; padding does not count) and 1: half a difference apart, in deviations of sqrt(1/2)."""
    rollouts = SimpleNamespace(
        group=torch.tensor([0, 0]),
        mask=torch.tensor([[True, True], [True, False]]),
        old=lambda name: {"self_certainty": tensor([1.0, 3.0], [1.0, 9.0])}[name],
    )
    config = method.config({"advantage_epsilon": 0.0})
    found = method.advantages(rewards=torch.zeros(2), rollouts=rollouts, config=config, state={})
    assert found["self_certainty"].tolist() == [2, 1]
    assert found["advantages"].tolist() == pytest.approx([0.707107, -0.707107], abs=1e-6)


def test_clipped_policy_gradient_of_each_token(call_loss):
    check_clipped_tokens(call_loss, "self_certainty", beta=0.0, aggregation="token")

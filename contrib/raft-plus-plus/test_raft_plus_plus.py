from types import SimpleNamespace

import torch
from posttrain_testkit.by_hand import check_clipped_tokens, method_beside

METHOD = method_beside(__file__)


def chosen(rewards, **options):
    rollouts = SimpleNamespace(items=list(range(len(rewards))))
    rewards = torch.tensor(rewards, dtype=torch.float64)
    return METHOD.select(rollouts=rollouts, rewards=rewards, config=METHOD.config(options), state={}).rollouts


def test_right_ones_are_kept():
    assert chosen([1.0, 0.0, 0.5]) == [0, 2]
    assert chosen([1.0, 0.0, 0.5], threshold=0.5) == [0]


def test_without_any_right_one_nothing_is_learnt():
    assert chosen([0.0, 0.0]) is None
    rewards, config = torch.tensor([0.0, 0.0]), METHOD.config({})
    assert METHOD.advantages(rewards=rewards, rollouts=None, config=config, state={}).tolist() == [0, 0]


def test_clipped_policy_gradient_of_each_token(call_loss):
    check_clipped_tokens(call_loss, epsilon_high=0.2)

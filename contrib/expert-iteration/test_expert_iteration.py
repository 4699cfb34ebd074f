from types import SimpleNamespace

import torch
from posttrain_testkit.by_hand import MASK, OLD, method_beside, tensor

METHOD = method_beside(__file__)


def chosen(rewards, group, texts, **options):
    rollouts = SimpleNamespace(group=torch.tensor(group), completions=texts, items=list(range(len(rewards))))
    rewards = torch.tensor(rewards, dtype=torch.float64)
    return METHOD.select(rollouts=rollouts, rewards=rewards, config=METHOD.config(options), state={}).rollouts


def test_right_answers_are_kept_once_and_up_to_the_cap():
    texts = ["a", "b", "a", "c", "d", "a"]
    rewards, group = [1.0, 0.4, 1.0, 1.0, 1.0, 1.0], [0, 0, 0, 0, 0, 1]
    assert chosen(rewards, group, texts) == [0, 3, 4, 5]
    assert chosen(rewards, group, texts, deduplicate=False) == [0, 2, 3, 4, 5]
    assert chosen(rewards, group, texts, max_per_prompt=1) == [0, 5]
    assert chosen(rewards, group, texts, threshold=0.4 - 1e-9) == [0, 1, 3, 4, 5]


def test_without_right_answers_nothing_is_learnt(call_loss):
    assert chosen([0.0, 0.0], [0, 0], ["a", "b"]) is None
    rewards, config = torch.zeros(2, dtype=torch.float64), METHOD.config({})
    worth = METHOD.advantages(rewards=rewards, rollouts=None, config=config, state={})
    loss, _ = call_loss(tensor([-1.0, -2.0], [-0.5, 0.0]), columns={"advantages": worth}, mask=MASK)
    assert loss.values[MASK].abs().max() == 0


def test_loss_is_the_negative_log_probability(call_loss):
    loss, _ = call_loss(OLD, columns={"advantages": torch.ones(2, dtype=torch.float64)}, mask=MASK)
    assert loss.values[MASK].tolist() == [1, 2, 0.5]

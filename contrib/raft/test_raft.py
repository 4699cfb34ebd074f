from types import SimpleNamespace

import torch
from posttrain_testkit.by_hand import MASK, OLD, method_beside

METHOD = method_beside(__file__)


def step_of(rewards, group):
    rollouts = SimpleNamespace(group=torch.tensor(group), items=list(range(len(rewards))))
    return {"rewards": torch.tensor(rewards, dtype=torch.float64), "rollouts": rollouts, "state": {}}


def chosen(rewards, group, **options):
    return METHOD.select(config=METHOD.config(options), **step_of(rewards, group)).rollouts


def test_the_best_of_each_prompt_and_the_first_of_equals():
    assert chosen([0.0, 2.0, 1.0, 2.0, 1.0, -1.0], [0, 1, 0, 1, 0, 2]) == [2, 1, 5]


def test_loss_is_the_negative_log_probability(call_loss):
    loss, _ = call_loss(OLD, columns={"advantages": torch.ones(2, dtype=torch.float64)}, mask=MASK)
    assert loss.mask is MASK
    assert loss.values[MASK].tolist() == [1, 2, 0.5]

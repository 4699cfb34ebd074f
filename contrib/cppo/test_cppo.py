import math
from types import SimpleNamespace

import pytest
import torch
from posttrain import Rollout
from posttrain.contract.generation import Completion
from posttrain_testkit.by_hand import MASK, NEW, OLD, method_beside, tensor

METHOD = method_beside(__file__)


def items_of(rewards, group):
    completion = Completion(torch.arange(2), torch.zeros(2), True, "a")
    return [
        Rollout(one, torch.arange(2), completion, {"prompt": "x"}, reward)
        for one, reward in zip(group, rewards, strict=True)
    ]


def chosen(rewards, group, **options):
    rollouts = SimpleNamespace(group=torch.tensor(group), items=items_of(group, rewards))
    rewards = torch.tensor(rewards, dtype=torch.float64)
    return METHOD.select(rollouts=rollouts, rewards=rewards, config=METHOD.config(options), state={}).rollouts


def test_the_largest_advantages_are_kept_and_stay_what_they_were():
    """{0, 1, 5, 10}: mean 4, so the farthest two are 10 (6) and 0 (-4), over a deviation of sqrt(62 / 3)."""
    found = chosen([0.0, 1.0, 5.0, 10.0], [0] * 4, advantage_epsilon=0.0)
    kept = [item.columns["whole_group_advantage"] for item in found]
    assert kept == pytest.approx([-4 / math.sqrt(62 / 3), 6 / math.sqrt(62 / 3)])
    rollouts = SimpleNamespace(group=torch.tensor([0, 0]), columns={"whole_group_advantage": kept})
    worth = METHOD.advantages(rewards=tensor(0.0, 10.0), rollouts=rollouts, config=METHOD.config({}), state={})
    assert worth.tolist() == pytest.approx(kept)


def test_how_many_stay():
    """floor(5 * 0.5) = 2; floor(3 * 2/3) = 2, whatever the floats; never none."""
    assert len(chosen([1.0] * 5, [0] * 5)) == 2
    assert len(chosen([1.0] * 3, [0] * 3, pruning_rate=1 / 3)) == 2
    assert len(chosen([1.0], [0], pruning_rate=0.9)) == 1


def test_clipped_policy_gradient_of_each_completion(call_loss):
    """A = 2 with ratios 1 and 3/2: -2 and -2.4, as 1.5 is clipped to 1.2. A = -1 with 1/2: clipped to 0.8."""
    columns = {"advantages": tensor(2.0, -1.0), "old_logps": OLD}
    loss, metrics = call_loss(NEW, columns=columns, mask=MASK)
    assert loss.tolist() == pytest.approx([-2.2, 0.8])
    assert metrics["clip_high"].values[MASK].tolist() == [0, 1, 0]
    assert metrics["clip_low"].values[MASK].tolist() == [0, 0, 1]

from types import SimpleNamespace

import pytest
import torch
from posttrain_testkit.by_hand import MASK, NEW, OLD, method_beside, tensor

METHOD = method_beside(__file__)


def step_of(rewards, group):
    rollouts = SimpleNamespace(group=torch.tensor(group), items=list(range(len(rewards))))
    return {"rewards": torch.tensor(rewards, dtype=torch.float64), "rollouts": rollouts, "state": {}}


def chosen(rewards, group, **options):
    return METHOD.select(config=METHOD.config(options), **step_of(rewards, group)).rollouts


def test_the_extremes_are_kept():
    """Of {0, 1, 5, 9} two: 9 and 0. Three: {0, 1, 9} (variance 16.2) before {0, 5, 9} (13.6)."""
    assert chosen([1.0, 9.0, 0.0, 5.0], [0] * 4, keep=2) == [1, 2]
    assert chosen([1.0, 9.0, 0.0, 5.0], [0] * 4, keep=3) == [0, 1, 2]


def test_no_other_subset_varies_more():
    """Against all subsets of four of nine."""
    from itertools import combinations

    rewards = torch.randn(9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = rewards[chosen(rewards.tolist(), [0] * 9, keep=4)].var(correction=0)
    assert found.item() == pytest.approx(
        max(rewards[list(c)].var(correction=0).item() for c in combinations(range(9), 4))
    )


def test_each_group_keeps_its_own_share():
    """A quarter of four and of eight, in the order of the step; equal rewards keep the first ones."""
    assert chosen([1.0, 1.0] * 6, [0] * 4 + [1] * 8) == [0, 4, 5]
    assert chosen([0.0, 1.0, 0.0, 1.0], [0, 0, 1, 1], keep=9) == [0, 1, 2, 3]


def test_kept_ones_are_compared_among_themselves():
    step = step_of([1.0, 0.0], [0, 0])
    found = METHOD.advantages(config=METHOD.config({"advantage_epsilon": 0.0}), **step)
    assert found.tolist() == pytest.approx([0.707107, -0.707107], abs=1e-6)


def test_clipped_policy_gradient_of_each_completion(call_loss):
    """A = 2 with ratios 1 and 3/2: -2 and -2.4, as 1.5 is clipped to 1.2. A = -1 with 1/2: clipped to 0.8."""
    columns = {"advantages": tensor(2.0, -1.0), "old_logps": OLD}
    loss, metrics = call_loss(NEW, columns=columns, mask=MASK)
    assert loss.tolist() == pytest.approx([-2.2, 0.8])
    assert metrics["clip_high"].values[MASK].tolist() == [0, 1, 0]
    assert metrics["clip_low"].values[MASK].tolist() == [0, 0, 1]

"""DLER against numbers worked by hand and the golden values."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain.methods import load
from posttrain.views import Batch, Step, View, Views
from posttrain_testkit.goldens.compare import evaluate

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "online.json"
METHOD = load(str(HERE))
D = torch.float64


def of_step(rewards, group, lengths, finished=None):
    return SimpleNamespace(
        group=torch.tensor(group),
        lengths=torch.tensor(lengths),
        finished=torch.tensor(finished or [True] * len(group)),
        items=list(range(len(group))),
    )


def worked_out(rewards, *about, **options):
    config = METHOD.config(options)
    rollouts = of_step(rewards, *about)
    return METHOD.advantages(rewards=torch.tensor(rewards, dtype=D), rollouts=rollouts, config=config, state={})


def test_what_does_not_end_in_time_earns_nothing():
    found = worked_out([1.0, 1.0, 1.0], [0, 0, 0], [3, 9, 3], [True, True, False], truncation_length=5)
    assert found["shaped_rewards"].tolist() == [1, 0, 0]
    assert found["cut_off"].tolist() == [0, 1, 1]


def test_the_deviation_is_that_of_the_step():
    """{1, 0} and {3, 0}: differences 1/2, -1/2, 3/2, -3/2, with sum of squares 5 and deviation sqrt(5 / 3)."""
    found = worked_out([1.0, 0.0, 3.0, 0.0], [0, 0, 1, 1], [1] * 4, advantage_epsilon=0.0)
    expected = [value / math.sqrt(5 / 3) for value in (0.5, -0.5, 1.5, -1.5)]
    assert found["advantages"].tolist() == pytest.approx(expected)


def test_dull_groups_are_replaced():
    """The second group differs only until its long answer earns nothing."""
    rewards, config = torch.tensor([1.0, 0.0, 1.0, 0.0]), METHOD.config({"truncation_length": 5})
    rollouts = of_step(rewards, [0, 0, 1, 1], [2, 2, 9, 2])
    found = METHOD.select(rollouts=rollouts, rewards=rewards, config=config, state={})
    assert (found.rollouts, found.refill) == ([0, 1], True)


def test_a_completion_without_a_reward_teaches_nothing():
    """G9."""
    found = worked_out([1.0, math.nan, 0.0], [0, 0, 0], [1, 1, 1], advantage_epsilon=0.0)["advantages"].tolist()
    assert found == pytest.approx([0.707107, 0, -0.707107], abs=1e-6)


def test_clipped_policy_gradient_of_each_token():
    """A = 2 with ratios 1 and 3/2: -2 and -2.4, as 1.5 is clipped to 1.2. A = -1 with 1/2: clipped to 0.8."""
    mask = torch.tensor([[True, True], [True, False]])
    old = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=D)
    new = old + torch.tensor([[1.0, 1.5], [0.5, 1.0]], dtype=D).log()
    columns = {
        "advantages": torch.tensor([2.0, -1.0], dtype=D),
        "old_logps": old,
        "shaped_rewards": torch.zeros(2, dtype=D),
        "cut_off": torch.zeros(2, dtype=D),
    }
    loss, metrics = METHOD.loss(
        batch=Batch(2, columns),
        policy=Views(completion=View(new, mask, entropy=torch.ones_like(new))),
        reference=None,
        config=METHOD.config({"epsilon_high": 0.2}),
        step=Step(0, 1),
    )
    assert loss.mask is mask
    assert loss.values[mask].tolist() == pytest.approx([-2, -2.4, 0.8])
    assert metrics["clip_high"].values[mask].tolist() == [0, 1, 0]
    assert metrics["clip_low"].values[mask].tolist() == [0, 0, 1]


def test_goldens():
    (result,) = evaluate(GOLDENS, "dler", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]

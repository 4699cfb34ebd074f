"""Reinforce-Rej against numbers worked by hand and the golden values."""

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


def step_of(rewards, group):
    return torch.tensor(rewards, dtype=D), SimpleNamespace(group=torch.tensor(group), items=list(range(len(group))))


def test_mixed_groups_are_kept():
    rewards, rollouts = step_of([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [0, 0, 1, 1, 2, 2])
    found = METHOD.select(rollouts=rollouts, rewards=rewards, config=METHOD.config({}), state={})
    assert found.rollouts == [2, 3]
    rewards, rollouts = step_of([1.0, 1.0], [0, 0])
    assert METHOD.select(rollouts=rollouts, rewards=rewards, config=METHOD.config({}), state={}).rollouts is None


def test_plus_and_minus_one():
    rewards, rollouts = step_of([1.0, 0.0, 0.2, math.nan, 1.0, 1.0], [0, 0, 0, 0, 1, 1])
    found = METHOD.advantages(rewards=rewards, rollouts=rollouts, config=METHOD.config({}), state={})
    assert found.tolist() == [1, -1, 1, 0, 0, 0]


def test_clipped_policy_gradient_of_each_token():
    """A = 2 with ratios 1 and 3/2: -2 and -2.4, as 1.5 is clipped to 1.2. A = -1 with 1/2: clipped to 0.8."""
    mask = torch.tensor([[True, True], [True, False]])
    old = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=D)
    new = old + torch.tensor([[1.0, 1.5], [0.5, 1.0]], dtype=D).log()
    columns = {"advantages": torch.tensor([2.0, -1.0], dtype=D), "old_logps": old}
    loss, metrics = METHOD.loss(
        batch=Batch(2, columns),
        policy=Views(completion=View(new, mask, entropy=torch.ones_like(new))),
        reference=None,
        config=METHOD.config({}),
        step=Step(0, 1),
    )
    assert loss.mask is mask
    assert loss.values[mask].tolist() == pytest.approx([-2, -2.4, 0.8])
    assert metrics["clip_high"].values[mask].tolist() == [0, 1, 0]
    assert metrics["clip_low"].values[mask].tolist() == [0, 0, 1]


def test_goldens():
    (result,) = evaluate(GOLDENS, "reinforce-rej", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["kept", "loss", "advantages", "grad_logp_new"]

"""LOOP against numbers worked by hand and the golden values."""

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


def worked_out(rewards, group):
    rollouts = SimpleNamespace(group=torch.tensor(group))
    config = METHOD.config({})
    return METHOD.advantages(
        rewards=torch.tensor(rewards, dtype=D), rollouts=rollouts, config=config, state={}
    ).tolist()


def test_baseline_is_the_mean_of_the_others():
    """G21. {1, 2, 6}: 1 - 4, 2 - 3.5, 6 - 1.5. Groups may be interleaved: {0, 1} gives -1 and 1."""
    assert worked_out([1, 0, 2, 6, 1], [5, 9, 5, 5, 9]) == pytest.approx([-3, -1, -1.5, 4.5, 1])


def test_a_completion_without_a_reward_teaches_nothing():
    """G9, G10."""
    assert worked_out([1, math.nan, 4], [0, 0, 0]) == [-3, 0, 3]
    assert worked_out([2.0], [0]) == [0]


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
    (result,) = evaluate(GOLDENS, "loop", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]

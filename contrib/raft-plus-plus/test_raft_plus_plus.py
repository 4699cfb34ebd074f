"""RAFT++ against numbers worked by hand and the golden values."""

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


def chosen(rewards, **options):
    rollouts = SimpleNamespace(items=list(range(len(rewards))))
    rewards = torch.tensor(rewards, dtype=D)
    return METHOD.select(rollouts=rollouts, rewards=rewards, config=METHOD.config(options), state={}).rollouts


def test_right_ones_are_kept():
    assert chosen([1.0, 0.0, 0.5]) == [0, 2]
    assert chosen([1.0, 0.0, 0.5], threshold=0.5) == [0]


def test_without_any_right_one_nothing_is_learnt():
    assert chosen([0.0, 0.0]) is None
    rewards, config = torch.tensor([0.0, 0.0]), METHOD.config({})
    assert METHOD.advantages(rewards=rewards, rollouts=None, config=config, state={}).tolist() == [0, 0]


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
        config=METHOD.config({"epsilon_high": 0.2}),
        step=Step(0, 1),
    )
    assert loss.mask is mask
    assert loss.values[mask].tolist() == pytest.approx([-2, -2.4, 0.8])
    assert metrics["clip_high"].values[mask].tolist() == [0, 1, 0]
    assert metrics["clip_low"].values[mask].tolist() == [0, 0, 1]


def test_goldens():
    (result,) = evaluate(GOLDENS, "raft-plus-plus", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]

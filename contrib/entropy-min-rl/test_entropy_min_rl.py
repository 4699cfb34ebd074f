"""Entropy minimisation by reinforcement learning against numbers worked by hand and the golden values."""

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


def worked_out(**options):
    rollouts = SimpleNamespace(
        group=torch.tensor([0, 0]),
        mask=torch.tensor([[True, True], [True, False]]),
        old_logps=torch.tensor([[-1.0, -2.0], [-2.0, -9.0]], dtype=D),
        old=lambda name: {"entropy": torch.tensor([[0.5, 1.5], [0.5, 9.0]], dtype=D)}[name],
    )
    config = METHOD.config({"advantage_epsilon": 0.0} | options)
    found = METHOD.advantages(rewards=torch.zeros(2), rollouts=rollouts, config=config, state={})
    return found["shaped_rewards"].tolist(), found["advantages"].tolist()


def test_rewards_by_hand():
    """Mean entropies 1 and 1/2, and log-probabilities -3 and -2; padding does not count."""
    assert worked_out()[0] == [-1, -0.5]
    assert worked_out(certainty="log-probability")[0] == [-3, -2]


def test_doubt_is_worth_less():
    assert worked_out()[1] == pytest.approx([-0.707107, 0.707107], abs=1e-6)


def test_clipped_policy_gradient_of_each_token():
    """A = 2 with ratios 1 and 3/2: -2 and -2.4, as 1.5 is clipped to 1.2. A = -1 with 1/2: clipped to 0.8."""
    mask = torch.tensor([[True, True], [True, False]])
    old = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=D)
    new = old + torch.tensor([[1.0, 1.5], [0.5, 1.0]], dtype=D).log()
    columns = {
        "advantages": torch.tensor([2.0, -1.0], dtype=D),
        "old_logps": old,
        "shaped_rewards": torch.zeros(2, dtype=D),
    }
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
    (result,) = evaluate(GOLDENS, "entropy-min-rl", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "shaped_rewards", "grad_logp_new"]

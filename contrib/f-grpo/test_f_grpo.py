"""F-GRPO against numbers worked by hand and the golden values."""

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


def worked_out(rewards, group, **options):
    rollouts = SimpleNamespace(group=torch.tensor(group))
    config = METHOD.config(options)
    return METHOD.advantages(rewards=torch.tensor(rewards, dtype=D), rollouts=rollouts, config=config, state={})


def test_solved_groups_count_less():
    """Three of four right: weight 1/4 or, with gamma 1/2, 1/2; one of four: 3/4."""
    rewards, group = [1, 1, 1, 0, 1, 0, 0, 0], [0] * 4 + [1] * 4
    found = worked_out(rewards, group, gamma=1.0, advantage_epsilon=0.0)
    assert found["focal_weight"].tolist() == [0.25] * 4 + [0.75] * 4
    assert found["advantages"].tolist() == pytest.approx([0.125] * 3 + [-0.375] + [1.125] + [-0.375] * 3)
    assert worked_out(rewards, group, gamma=0.5)["focal_weight"][0].item() == pytest.approx(0.5)


def test_without_gamma_it_is_grpo():
    """Reward 1 of {1, 0, 0, 0}: 3/4 over a deviation of 1/2."""
    assert worked_out([1, 0, 0, 0], [0] * 4, gamma=0.0, advantage_epsilon=0.0)["advantages"][0].item() == 1.5


def test_a_completion_without_a_reward_teaches_nothing():
    """G9."""
    found = worked_out([1.0, math.nan, 0.0], [0, 0, 0], gamma=0.0, advantage_epsilon=0.0)["advantages"].tolist()
    assert found == pytest.approx([0.707107, 0, -0.707107], abs=1e-6)


def test_clipped_policy_gradient_of_each_token():
    """A = 2 with ratios 1 and 3/2: -2 and -2.4, as 1.5 is clipped to 1.2. A = -1 with 1/2: clipped to 0.8."""
    mask = torch.tensor([[True, True], [True, False]])
    old = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=D)
    new = old + torch.tensor([[1.0, 1.5], [0.5, 1.0]], dtype=D).log()
    columns = {
        "advantages": torch.tensor([2.0, -1.0], dtype=D),
        "old_logps": old,
        "focal_weight": torch.zeros(2, dtype=D),
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
    (result,) = evaluate(GOLDENS, "f-grpo", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]

"""StarPO-S against numbers worked by hand and the golden values."""

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
    rollouts = SimpleNamespace(group=torch.tensor(group), items=list(range(len(rewards))))
    return {"rewards": torch.tensor(rewards, dtype=D), "rollouts": rollouts, "state": {}}


def chosen(rewards, group, **options):
    return METHOD.select(config=METHOD.config(options), **step_of(rewards, group)).rollouts


def test_the_most_uncertain_prompts_are_kept():
    """Deviations 0, 2 / sqrt(2) and 1 / sqrt(2): a third is the second group, two thirds are the last two."""
    rewards, group = [1.0, 1.0, 0.0, 2.0, 0.0, 1.0], [0, 0, 1, 1, 2, 2]
    assert chosen(rewards, group, keep_fraction=0.34) == [2, 3]
    assert chosen(rewards, group, keep_fraction=0.67) == [2, 3, 4, 5]
    assert chosen(rewards, group, keep_fraction=0.01) == [2, 3]
    assert chosen(rewards, group, keep_fraction=1.0) == [0, 1, 2, 3, 4, 5]


def test_kept_rewards_are_compared():
    found = METHOD.advantages(config=METHOD.config({"advantage_epsilon": 0.0}), **step_of([1.0, 0.0], [0, 0]))
    assert found["advantages"].tolist() == pytest.approx([0.707107, -0.707107], abs=1e-6)
    assert found["reward_spread"].tolist() == pytest.approx([0.707107] * 2, abs=1e-6)


def test_clipped_policy_gradient_of_each_token():
    """A = 2 with ratios 1 and 3/2: -2 and -2.4, as 1.5 is clipped to 1.2. A = -1 with 1/2: clipped to 0.8."""
    mask = torch.tensor([[True, True], [True, False]])
    old = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=D)
    new = old + torch.tensor([[1.0, 1.5], [0.5, 1.0]], dtype=D).log()
    columns = {
        "advantages": torch.tensor([2.0, -1.0], dtype=D),
        "old_logps": old,
        "reward_spread": torch.zeros(2, dtype=D),
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
    (result,) = evaluate(GOLDENS, "starpo-s", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]

"""Efficient reasoning against numbers worked by hand and the golden values."""

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


def worked_out(rewards, group, lengths, **options):
    rollouts = SimpleNamespace(
        group=torch.tensor(group), lengths=torch.tensor(lengths), finished=torch.ones(len(group), dtype=torch.bool)
    )
    config = METHOD.config(options)
    found = METHOD.advantages(rewards=torch.tensor(rewards, dtype=D), rollouts=rollouts, config=config, state={})
    return found["shaped_rewards"].tolist(), found["advantages"].tolist()


def test_short_right_answers_lose_least():
    """Right ones of 2, 4, 6 tokens: mean 4, deviation the root of 8/3; a wrong one has no say in the mean."""
    shaped, _ = worked_out([1, 1, 1, 0], [0] * 4, [2, 4, 6, 100], alpha=0.2)
    s = 1 / (1 + math.exp(2 / math.sqrt(8 / 3)))
    assert shaped == pytest.approx([1 - 0.2 * s, 0.9, 1 - 0.2 * (1 - s), 0])


def test_the_deviation_has_the_divisor_n():
    """Two right ones of 2 and 3 tokens: mean 2.5, deviation 0.5, sigmoids of -1 and 1."""
    shaped, _ = worked_out([1, 1], [0, 0], [2, 3], alpha=0.2)
    assert shaped == pytest.approx([0.946212, 0.853788], abs=1e-6)


def test_baseline_is_the_mean_of_the_others():
    """0.95 (the only right one: sigmoid of 0) against 0 and 0."""
    shaped, found = worked_out([1, 0, 0], [0, 0, 0], [3, 5, 5], alpha=0.1)
    assert shaped == pytest.approx([0.95, 0, 0])
    assert found == pytest.approx([0.95, -0.475, -0.475])


def test_without_right_answers_there_is_nothing_to_learn():
    assert worked_out([0, 0], [0, 0], [3, 5])[1] == [0, 0]


def test_a_completion_without_a_reward_teaches_nothing():
    """G9."""
    _, found = worked_out([1.0, math.nan, 0.0], [0, 0, 0], [1, 1, 1], alpha=0.0)
    assert found == [1, 0, -1]


def test_clipped_policy_gradient_of_each_token():
    """A = 2 with ratios 1 and 3/2: -2 and -2.4, as 1.5 is clipped to 1.2. A = -1 with 1/2: clipped to 0.8."""
    mask = torch.tensor([[True, True], [True, False]])
    old = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=D)
    new = old + torch.tensor([[1.0, 1.5], [0.5, 1.0]], dtype=D).log()
    columns = {
        "advantages": torch.tensor([2.0, -1.0], dtype=D),
        "old_logps": old,
        "shaped_rewards": torch.zeros(2, dtype=D),
        "correct_length": torch.zeros(2, dtype=D),
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
    (result,) = evaluate(GOLDENS, "efficient-reasoning", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "shaped_rewards", "grad_logp_new"]

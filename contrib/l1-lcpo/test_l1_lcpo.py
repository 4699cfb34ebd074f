"""LCPO against numbers worked by hand and the golden values."""

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


def worked_out(rewards, lengths, asked=None, **options):
    rollouts = SimpleNamespace(
        group=torch.zeros(len(rewards)),
        lengths=torch.tensor(lengths),
        columns={} if asked is None else {"n_gold": asked},
    )
    config = METHOD.config(options)
    found = METHOD.advantages(rewards=torch.tensor(rewards, dtype=D), rollouts=rollouts, config=config, state={})
    return found["shaped_rewards"].tolist(), found["advantages"].tolist()


def test_exact_punishes_both_sides():
    shaped, _ = worked_out([1.0, 1.0, 0.0], [8, 13, 10], [10, 10, 10], alpha=0.1)
    assert shaped == pytest.approx([0.8, 0.7, 0])


def test_max_punishes_what_is_too_long():
    """delta 1/2, alpha 0.1: 0.5 at the bound, 1 from 5 tokens below it, 0 from 5 above; wrong ones stay 0."""
    shaped, _ = worked_out([1.0] * 4 + [0.0], [10, 5, 2, 16, 3], [10] * 5, alpha=0.1, mode="max")
    assert shaped == pytest.approx([0.5, 1, 1, 0, 0])


def test_rows_that_do_not_say_have_the_options_length():
    shaped, _ = worked_out([1.0, 1.0], [4, 4], [None, 6], alpha=0.1, n_gold=5)
    assert shaped == pytest.approx([0.9, 0.8])
    assert worked_out([1.0], [4], n_gold=4)[0] == [1]


def test_a_completion_without_a_reward_teaches_nothing():
    """G9."""
    _, found = worked_out([1.0, math.nan, 0.0], [5, 5, 5], advantage_epsilon=0.0)
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
        "length_error": torch.zeros(2, dtype=D),
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
    (result,) = evaluate(GOLDENS, "l1-lcpo", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "shaped_rewards", "grad_logp_new"]

"""Intuitor against numbers worked by hand and the golden values."""

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


def test_self_certainty_by_hand():
    """p = (3/4, 1/4): KL(U || p) = 1/2 ln(2/3) + 1/2 ln 2 = 0.143841; of the uniform distribution 0."""
    logits = torch.tensor([[0.75, 0.25], [0.5, 0.5]], dtype=D).log() + 3
    found = METHOD.token_statistics(logits=logits, labels=torch.zeros(2, dtype=torch.long), config=METHOD.config({}))
    assert found["self_certainty"].tolist() == pytest.approx([0.143841, 0], abs=1e-6)


def test_certain_completions_are_worth_more():
    """Means 2 (of 1 and 3; padding does not count) and 1: half a difference apart, in deviations of sqrt(1/2)."""
    rollouts = SimpleNamespace(
        group=torch.tensor([0, 0]),
        mask=torch.tensor([[True, True], [True, False]]),
        old=lambda name: {"self_certainty": torch.tensor([[1.0, 3.0], [1.0, 9.0]], dtype=D)}[name],
    )
    config = METHOD.config({"advantage_epsilon": 0.0})
    found = METHOD.advantages(rewards=torch.zeros(2), rollouts=rollouts, config=config, state={})
    assert found["self_certainty"].tolist() == [2, 1]
    assert found["advantages"].tolist() == pytest.approx([0.707107, -0.707107], abs=1e-6)


def test_clipped_policy_gradient_of_each_token():
    """A = 2 with ratios 1 and 3/2: -2 and -2.4, as 1.5 is clipped to 1.2. A = -1 with 1/2: clipped to 0.8."""
    mask = torch.tensor([[True, True], [True, False]])
    old = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=D)
    new = old + torch.tensor([[1.0, 1.5], [0.5, 1.0]], dtype=D).log()
    columns = {
        "advantages": torch.tensor([2.0, -1.0], dtype=D),
        "old_logps": old,
        "self_certainty": torch.zeros(2, dtype=D),
    }
    loss, metrics = METHOD.loss(
        batch=Batch(2, columns),
        policy=Views(completion=View(new, mask, entropy=torch.ones_like(new))),
        reference=None,
        config=METHOD.config({"beta": 0.0, "aggregation": "token"}),
        step=Step(0, 1),
    )
    assert loss.mask is mask
    assert loss.values[mask].tolist() == pytest.approx([-2, -2.4, 0.8])
    assert metrics["clip_high"].values[mask].tolist() == [0, 1, 0]
    assert metrics["clip_low"].values[mask].tolist() == [0, 0, 1]


def test_goldens():
    (result,) = evaluate(GOLDENS, "intuitor", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]

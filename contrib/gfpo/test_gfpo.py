"""GFPO against numbers worked by hand and the golden values."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain.methods import load
from posttrain.views import Batch, PerToken, Step, View, Views
from posttrain_testkit.goldens.compare import evaluate

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "online.json"
METHOD = load(str(HERE))
D = torch.float64


def matrix(*rows):
    return torch.tensor(rows, dtype=D)


def advantages(rewards, group, mask=None, options=None, state=None, **columns):
    group = torch.tensor(group)
    mask = torch.ones(len(group), 2, dtype=torch.bool) if mask is None else mask
    rollouts = SimpleNamespace(group=group, mask=mask, lengths=mask.sum(-1), **columns)
    config, state = METHOD.config(options or {}), {} if state is None else state
    rewards = torch.tensor(rewards, dtype=D)
    return METHOD.worth(rewards=rewards, rollouts=rollouts, config=config, state=state)


def loss_of(new, worth, mask, old=None, options=None, reference=None, **columns):
    """The unreduced loss, and the metrics; ``old`` are the log-probs of the policy that sampled."""
    columns |= {"advantages": worth, "old_logps": new.detach() if old is None else old}
    loss, metrics = METHOD.loss(
        batch=Batch(len(new), columns),
        policy=Views(completion=View(new, mask, entropy=torch.ones_like(new))),
        reference=None if reference is None else Views(completion=View(reference, mask)),
        config=METHOD.config(options or {}),
        step=Step(0, 1),
    )
    return loss.values[loss.mask] if isinstance(loss, PerToken) else loss, metrics


#: Ratios 1 and 3/2 for a good completion, 1/2 for a bad one of one token.
MASK = torch.tensor([[True, True], [True, False]])
OLD = matrix([-1.0, -2.0], [-0.5, 0.0])
NEW = OLD + matrix([1.0, 1.5], [0.5, 1.0]).log()
WORTH = torch.tensor([2.0, -1.0], dtype=D)


def test_the_most_efficient_are_kept():
    """Rewards 1, 1, 0 over 3, 1, 2 tokens: 1/3, 1, 0. Of the kept 1 and 1 nothing is learnt; with keep 3, by GRPO."""
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    found, columns = advantages([1, 1, 0], [0, 0, 0], mask, {"keep": 2})
    assert (found.tolist(), columns["kept"].tolist()) == ([0, 0, 0], [1, 1, 0])
    found, _ = advantages([1, 1, 0], [0, 0, 0], mask, {"keep": 3})
    assert found.tolist() == pytest.approx([0.577349, 0.577349, -1.154699], abs=1e-6)


def test_the_shortest_are_kept():
    """Two of 1, 2 and 3 tokens: rewards 0 and 1 of the shorter ones are 0.707107 deviations off their mean."""
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    found, columns = advantages([5, 0, 1], [0, 0, 0], mask, {"keep": 2, "metric": "length"})
    assert found.tolist() == pytest.approx([0, -0.707106, 0.707106], abs=1e-6)
    assert columns["kept_length"][1:].tolist() == [1, 2]
    assert math.isnan(columns["kept_length"][0])


def test_loss_is_clipped_and_averaged_over_tokens():
    """Ratios 1, 3/2 and 1/2 under advantages 2 and -1: -2, -2 * 1.2 and 0.8."""
    assert loss_of(NEW, WORTH, MASK, OLD, kept=WORTH, kept_length=WORTH)[0].tolist() == pytest.approx([-2, -2.4, 0.8])


def test_goldens():
    (result,) = evaluate(GOLDENS, "gfpo", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "kept", "grad_logp_new"]

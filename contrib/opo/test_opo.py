"""OPO against numbers worked by hand and the golden values."""

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


def test_advantages_by_hand():
    """Rewards 1 and 0 of 1 and 3 tokens: baseline 1/4. Equal rewards are worth nothing."""
    mask = torch.tensor([[True, False, False], [True, True, True], [True, True, False], [True, False, False]])
    found, columns = advantages([1, 0, 0.1, 0.1], [0, 0, 1, 1], mask)
    assert found.tolist() == pytest.approx([0.75, -0.25, 0, 0], abs=1e-12)
    assert columns["baseline"].tolist() == pytest.approx([0.25, 0.25, 0.1, 0.1])
    plain, _ = advantages([1, 0, 0.1, 0.1], [0, 0, 1, 1], mask, {"length_weighted": False})
    assert plain.tolist() == pytest.approx([0.5, -0.5, 0, 0], abs=1e-12)


def test_the_weighted_sum_is_zero():
    mask = torch.tensor([[True, False, False], [True, True, True], [True, True, False]])
    found, _ = advantages([0.3, -1.7, 2.2], [0, 0, 0], mask)
    assert float((found * mask.sum(-1)).sum()) == pytest.approx(0, abs=1e-12)


def test_loss_is_the_plain_policy_gradient():
    """-A log p, whatever the ratio."""
    loss, _ = loss_of(NEW, WORTH, MASK, OLD, baseline=WORTH)
    assert loss.tolist() == pytest.approx([2.0, -2 * (-2 + math.log(1.5)), -0.5 - math.log(2)])


def test_goldens():
    (result,) = evaluate(GOLDENS, "opo", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]

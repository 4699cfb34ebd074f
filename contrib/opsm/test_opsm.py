"""Off-policy sequence masking against numbers worked by hand and the golden values."""

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


def test_loss_by_hand():
    """The bad completion has fallen by ln 2 = 0.69 > 0.5 and is left out; with a delta of 0.7 it counts 0.8."""
    loss, metrics = loss_of(NEW, WORTH, MASK, OLD, {"beta": 0.0}, sampled_logps=OLD)
    assert loss.tolist() == pytest.approx([-2.2, 0])
    assert metrics["left_out"].values[MASK].tolist() == [0, 0, 1]
    loss, _ = loss_of(NEW, WORTH, MASK, OLD, {"beta": 0.0, "delta": 0.7}, sampled_logps=OLD)
    assert loss.tolist() == pytest.approx([-2.2, 0.8])


def test_divergence_is_weighted_by_the_ratio():
    """A reference twice as likely: 1 - ln 2 = 0.306853, times the ratios 1 and 3/2 of the good completion, and 1/2."""
    loss, _ = loss_of(NEW, WORTH * 0, MASK, OLD, {"beta": 1.0}, NEW + math.log(2), sampled_logps=OLD)
    assert loss.tolist() == pytest.approx([0.306853 * 1.25, 0.306853 * 0.5], abs=1e-6)


def test_advantages_by_hand():
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)


def test_goldens():
    (result,) = evaluate(GOLDENS, "opsm", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]

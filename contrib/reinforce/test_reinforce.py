"""REINFORCE against numbers worked by hand and the golden values."""

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


def test_the_baseline_is_the_mean_so_far():
    """1, 0, 0 have the mean 1/3; with 1, 1, 1 behind them the mean of all six is 2/3."""
    state = {}
    assert advantages([1, 0, 0], [0, 0, 1], state=state)[0].tolist() == pytest.approx([2 / 3, -1 / 3, -1 / 3])
    assert advantages([1, 1, 1], [0, 0, 1], state=state)[0].tolist() == pytest.approx([1 / 3] * 3)
    only = advantages([1, 1, 1], [0, 0, 1], state=state, options={"baseline": "batch_mean"})[0]
    assert only.tolist() == [0, 0, 0]


def test_an_unscored_completion_leaves_the_others_alone():
    found, _ = advantages([1, math.nan, 0], [0, 0, 0])
    assert found.tolist() == [0.5, 0, -0.5]


def test_divergence_is_part_of_the_reward():
    """Log-ratios of 1 on two tokens cost 0.2 with beta 0.1: rewards 0.8 and 1."""
    old, reference = torch.zeros(2, 2, dtype=D), matrix([-1.0, -1.0], [0.0, 0.0])
    found, _ = advantages([1, 1], [0, 1], options={"beta": 0.1}, old_logps=old, reference_logps=reference)
    assert found.tolist() == pytest.approx([-0.1, 0.1])


def test_loss_by_hand():
    """-2 * (-1 - 2 + ln 1.5), and -0.5 - ln 2."""
    loss, _ = loss_of(NEW, WORTH, MASK, OLD, baseline=WORTH)
    assert loss.tolist() == pytest.approx([6 - 2 * math.log(1.5), -0.5 - math.log(2)])


def test_goldens():
    (result,) = evaluate(GOLDENS, "reinforce", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]

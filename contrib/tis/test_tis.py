"""TIS against numbers worked by hand and the golden values."""

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


#: The sampler thought the second good token half as likely as the trainer does, and the bad one three times.
SAMPLED = OLD - matrix([0.0, math.log(2)], [-math.log(3), 0.0])


def test_loss_by_hand():
    """Losses -2, -2.4 and 0.8 times the weights 1, 2 and 1/3; a cap of 1.5 takes 2 down."""
    loss, metrics = loss_of(NEW, WORTH, MASK, OLD, sampled_logps=SAMPLED)
    assert loss.tolist() == pytest.approx([-2, -4.8, 0.8 / 3])
    loss, metrics = loss_of(NEW, WORTH, MASK, OLD, {"cap": 1.5}, sampled_logps=SAMPLED)
    assert loss[1].item() == pytest.approx(-3.6)
    assert metrics["truncated"].values[MASK].tolist() == [0, 1, 0]


def test_weight_of_the_whole_completion():
    """The product 1 * 2 for both tokens of the good one."""
    loss, _ = loss_of(NEW, WORTH, MASK, OLD, {"level": "sequence"}, sampled_logps=SAMPLED)
    assert loss.tolist() == pytest.approx([-4, -4.8, 0.8 / 3])


def test_advantages_by_hand():
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)


def test_goldens():
    (result,) = evaluate(GOLDENS, "tis", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]

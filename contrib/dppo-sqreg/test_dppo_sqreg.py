"""DPPO with squared regulariser against numbers worked by hand and the golden values."""

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
    """0.5 rises to 0.8 and is left out, 0.1 to 0.2 stays; 0.6 falls to 0.3 and is left out."""
    then, now = matrix([0.5, 0.1], [0.6, 1.0]).log(), matrix([0.8, 0.2], [0.3, 1.0]).log()
    loss, metrics = loss_of(now, WORTH, MASK, now, {"kl_tau": 0.1}, sampled_logps=then)
    squares = [0.1 * math.log(1.6) ** 2, 0.1 * math.log(2) ** 2, 0.1 * math.log(2) ** 2]
    assert loss.tolist() == pytest.approx([squares[0], squares[1] - 4, squares[2]])
    assert metrics["left_out"].values[MASK].tolist() == [1, 0, 1]


def test_either_way():
    """A good token that fell from 0.6 to 0.3 is kept, unless the mask is symmetric."""
    then, now = matrix([0.6, 1.0], [0.5, 1.0]).log(), matrix([0.3, 1.0], [0.5, 1.0]).log()
    kept, _ = loss_of(now, WORTH, MASK, now, {"kl_tau": 0.0}, sampled_logps=then)
    assert kept.tolist() == pytest.approx([-1, -2, 1])
    left, _ = loss_of(now, WORTH, MASK, now, {"kl_tau": 0.0, "symmetric": True}, sampled_logps=then)
    assert left.tolist() == pytest.approx([0, -2, 1])


def test_advantages_by_hand():
    found, _ = advantages([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([1 / 3, -2 / 3, 1 / 3, 0, 0, 0])


def test_goldens():
    (result,) = evaluate(GOLDENS, "dppo-sqreg", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]

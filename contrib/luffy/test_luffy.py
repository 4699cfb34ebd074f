"""LUFFY against numbers worked by hand and the golden values."""

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


def shown(new, worth, mask, old, source):
    return loss_of(new, worth, mask, old, source=source)


def test_loss_by_hand():
    """Samples: ratios 1 and 3/2 times -2. A demonstrated token has p / (p + 0.1) for an advantage of -1."""
    loss, metrics = shown(NEW, WORTH, MASK, OLD, ["policy", "data"])
    p = math.exp(-0.5) / 2
    assert loss.tolist() == pytest.approx([-2, -3, p / (p + 0.1)])
    assert metrics["demonstration_probability"].values[1, 0].item() == pytest.approx(p)
    assert metrics["ratio"].values[MASK].isnan().tolist() == [False, False, True]


def test_rare_demonstrated_tokens_learn_most_per_log_prob():
    """d/dlog p of p / (p + g) is p g / (p + g)^2: largest at p = g, where it is 1/4."""
    new = matrix([0.1, 0.9], [0.001, 1.0]).log().requires_grad_()
    everything = torch.ones(2, 2, dtype=torch.bool)
    shown(new, torch.ones(2, dtype=D), everything, OLD, ["data", "data"])[0].sum().backward()
    assert new.grad.flatten().tolist() == pytest.approx([-0.25, -0.09, -0.0001 / 0.101**2, -0.1 / 1.21])


def test_one_of_each_group_is_a_demonstration():
    plan = METHOD.plan_rollouts(prompts=[{}], group_size=8, config=METHOD.config({}), state={}, random=None)
    assert [(ask.samples, ask.source) for ask in plan[0]] == [(7, "policy"), (1, "data")]


def test_advantages_by_hand():
    assert advantages([1, 0, 1], [0, 0, 0])[0].tolist() == pytest.approx([1 / 3, -2 / 3, 1 / 3])


def test_goldens():
    (result,) = evaluate(GOLDENS, "luffy", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]

"""Asymmetric REINFORCE against numbers worked by hand and the golden values."""

from pathlib import Path
from types import SimpleNamespace

import torch
from posttrain.methods import load
from posttrain.views import Batch, Step, View, Views
from posttrain_testkit.goldens.compare import evaluate

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "online.json"
METHOD = load(str(HERE))
D = torch.float64

MASK = torch.tensor([[True, True], [True, False]])


def loss_of(new, columns, reference=None, **options):
    view = View(new, MASK, entropy=torch.ones_like(new))
    return METHOD.loss(
        batch=Batch(len(new), columns),
        policy=Views(completion=view),
        reference=None if reference is None else Views(completion=View(reference, MASK)),
        config=METHOD.config(options),
        step=Step(0, 1),
    )


def worked_out(rewards, group, **options):
    rollouts = SimpleNamespace(group=torch.tensor(group))
    config = METHOD.config(options)
    return METHOD.advantages(
        rewards=torch.tensor(rewards, dtype=D), rollouts=rollouts, config=config, state={}
    ).tolist()


def test_the_baseline_is_shifted():
    assert worked_out([1.0, 0.0, 3.0], [0, 0, 1], baseline_shift=-0.25) == [0.75, -0.25, 0.25]
    assert worked_out([1.0, float("nan")], [0, 0], baseline_shift=-0.25) == [0.25, 0]


def test_loss_needs_no_ratio():
    new = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=D, requires_grad=True)
    loss, _ = loss_of(new, {"advantages": torch.tensor([0.5, -1.0], dtype=D)})
    assert loss.mask is MASK
    assert loss.values[MASK].tolist() == [0.5, 1, -0.5]
    loss.values[MASK].sum().backward()
    assert new.grad.tolist() == [[-0.5, -0.5], [1, 0]]


def test_goldens():
    (result,) = evaluate(GOLDENS, "asymre", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]

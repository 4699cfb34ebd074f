"""RAFT against numbers worked by hand and the golden values."""

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


def step_of(rewards, group):
    rollouts = SimpleNamespace(group=torch.tensor(group), items=list(range(len(rewards))))
    return {"rewards": torch.tensor(rewards, dtype=D), "rollouts": rollouts, "state": {}}


def chosen(rewards, group, **options):
    return METHOD.select(config=METHOD.config(options), **step_of(rewards, group)).rollouts


def test_the_best_of_each_prompt_and_the_first_of_equals():
    assert chosen([0.0, 2.0, 1.0, 2.0, 1.0, -1.0], [0, 1, 0, 1, 0, 2]) == [2, 1, 5]


def test_loss_is_the_negative_log_probability():
    new = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=D)
    loss, _ = loss_of(new, {"advantages": torch.ones(2, dtype=D)})
    assert loss.mask is MASK
    assert loss.values[MASK].tolist() == [1, 2, 0.5]


def test_goldens():
    (result,) = evaluate(GOLDENS, "raft", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["selected", "loss", "advantages", "grad_logp_new"]

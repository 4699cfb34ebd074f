"""Online IPO against numbers worked by hand and the golden values."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain import Ask
from posttrain.methods import load
from posttrain.views import Batch, Step, View, Views
from posttrain_testkit.goldens.compare import evaluate

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "online.json"
METHOD = load(str(HERE))
D = torch.float64


def views(chosen, rejected):
    def one(values):
        values = torch.tensor(values, dtype=D)[:, None]  # (B, 1): one token an answer
        return View(values, torch.ones_like(values, dtype=torch.bool))

    return Views(chosen=one(chosen), rejected=one(rejected))


def loss_of(chosen, rejected, columns=None, reference=((0.0, 0.0), (0.0, 0.0)), **options):
    columns = {name: torch.tensor(values, dtype=D) for name, values in (columns or {}).items()}
    return METHOD.loss(
        batch=Batch(2, {"decided": torch.ones(2, dtype=D)} | columns),
        policy=views(chosen, rejected),
        reference=views(*reference),
        config=METHOD.config(options),
        step=Step(0, 1),
    )


def step_of(rewards, group, sources=None, finished=None):
    rewards = torch.tensor(rewards, dtype=D)
    rollouts = SimpleNamespace(
        group=torch.tensor(group),
        source=sources or ["policy"] * len(group),
        items=list(range(len(group))),
        prefer=lambda first, second: torch.sigmoid(rewards[first] - rewards[second]),
    )
    return {"rewards": rewards, "rollouts": rollouts}


def selected(rewards, group, sources=None, state=None, **options):
    step = step_of(rewards, group, sources)
    return METHOD.select(config=METHOD.config(options), state={} if state is None else state, **step)


def test_by_hand():
    """beta 1/4: target 2. Margins (-1 + 3) - (-4 + 4.5) = 1.5 and 2, which is the target."""
    loss, metrics = loss_of([-1.0, -1.0], [-4.0, -3.0], reference=([-3.0, -2.0], [-4.5, -2.0]), beta=0.25)
    assert metrics["margin"].tolist() == pytest.approx([1.5, 2])
    assert loss.tolist() == pytest.approx([0.25, 0])


def test_what_is_not_decided_teaches_nothing():
    loss, metrics = loss_of([-1.0, -1.0], [-4.0, -3.0], {"decided": [1.0, 0.0]})
    assert loss[1].item() == 0
    assert metrics["accuracy"][1].isnan()


def test_the_better_one_comes_first():
    found = selected([1.0, 2.0, 3.0, 0.0, 5.0, 5.0], [0, 0, 1, 1, 2, 2])
    assert found.pairs == [(1, 0), (2, 3), (4, 5)]
    assert found.columns["decided"].tolist() == [1, 1, 0]


def test_who_answers():
    for share in (0.0, 0.25):
        plan = METHOD.plan_rollouts(
            prompts=[{}], group_size=2, config=METHOD.config({"mixture": share}), state={}, random=None
        )
        assert plan == [[Ask(2, mixture=share)]]


def test_goldens():
    (result,) = evaluate(GOLDENS, "online-ipo", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_seq_logps"]

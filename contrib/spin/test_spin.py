"""Self-play fine-tuning against numbers worked by hand and the golden values."""

import math
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


def test_the_data_come_first():
    found = selected([0.0] * 5, [0, 0, 0, 1, 1], ["policy", "policy", "data", "data", "policy"])
    assert found.pairs == [(2, 0), (2, 1), (3, 4)]
    plan = METHOD.plan_rollouts(prompts=[{}], group_size=2, config=METHOD.config({}), state={}, random=None)
    assert plan == [[Ask(2), Ask(1, source="data")]]


def test_loss_by_hand():
    """Margins 0.5 (2 + 1) and 0: ln(1 + e^-1.5) and ln 2."""
    loss, metrics = loss_of([-1.0, -2.0], [-4.0, -1.0], reference=([-3.0, -2.0], [-3.0, -1.0]), scale=0.5)
    assert loss.tolist() == pytest.approx([math.log(1 + math.exp(-1.5)), math.log(2)])
    assert metrics["logp_data"].tolist() == [-1, -2]


def test_goldens():
    (result,) = evaluate(GOLDENS, "spin", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "grad_seq_logps"]

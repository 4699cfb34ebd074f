"""REBEL against numbers worked by hand and the shared golden values."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain.methods import load
from posttrain.testing.goldens import evaluate
from posttrain.views import Batch, Step, View, Views

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / ".." / "shared" / "methods" / "goldens-online.json"
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


def test_pairs_and_their_rewards():
    found = selected([1.0, 3.0, 2.0, 0.0, 5.0], [0, 0, 1, 1, 2])
    assert found.pairs == [(1, 0), (2, 3)]
    assert found.columns["chosen_rewards"].tolist() == [3, 2]
    assert found.columns["rejected_rewards"].tolist() == [1, 0]


def test_loss_by_hand():
    """eta 2. Log-ratios 2 and -1, over eta 1.5; the gap is 1. Second: 0 against a gap of 0."""
    columns = {"chosen_rewards": [3.0, 1.0], "rejected_rewards": [2.0, 1.0]}
    loss, metrics = loss_of([-1.0, -2.0], [-4.0, -1.0], columns, ([-3.0, -2.0], [-3.0, -1.0]), eta=2.0)
    assert loss.tolist() == pytest.approx([0.25, 0])
    assert metrics["margin"].tolist() == pytest.approx([1.5, 0])


@pytest.mark.skipif(not GOLDENS.exists(), reason="the shared golden values are not here")
def test_goldens():
    (result,) = evaluate(GOLDENS, "rebel", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]

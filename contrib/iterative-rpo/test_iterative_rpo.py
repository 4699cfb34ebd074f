"""Iterative reasoning preference optimisation against numbers worked by hand and the shared golden values."""

import math
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


def test_right_and_wrong_are_paired_evenly():
    """Two right and three wrong make three pairs; another prompt has one of each; the last is all right."""
    found = selected([1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0], [0] * 5 + [1] * 2 + [2] * 2)
    assert found.pairs == [(0, 1), (2, 3), (0, 4), (6, 5)]
    assert selected([1.0, 0.0, 1.0, 0.0], [0] * 4, pairs_per_prompt=1).pairs == [(0, 1)]


def test_rewards_that_are_no_verdicts():
    """All above the threshold: the best against the worst, where they differ."""
    assert selected([1.5, 0.5, 2.0], [0] * 3).pairs == [(2, 1)]
    assert selected([1.5, 1.5], [0] * 2).pairs == []


def test_loss_by_hand():
    """Margin 0.5 (2 + 1) = 1.5 and 0; 2 * 1 and 2 * 2 nats of the right answers, of one token each."""
    terms, metrics = loss_of([-1.0, -2.0], [-4.0, -1.0], reference=([-3.0, -2.0], [-3.0, -1.0]), beta=0.5, alpha=2.0)
    assert terms["preference"].tolist() == pytest.approx([math.log(1 + math.exp(-1.5)), math.log(2)])
    assert terms["nll"].tolist() == pytest.approx([2, 4])
    assert metrics["margin"].tolist() == pytest.approx([1.5, 0])


@pytest.mark.skipif(not GOLDENS.exists(), reason="the shared golden values are not here")
def test_goldens():
    result, *others = evaluate(GOLDENS, "iterative-rpo", [str(HERE)])
    assert {one.status for one in others} == {"equal"}
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_seq_logps"]

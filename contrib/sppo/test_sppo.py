"""Self-play preference optimisation against numbers worked by hand and the golden values."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
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


def test_win_rates_are_means_over_all_other_answers():
    """Rewards ln 3, 0, 0: chances 3/4, 3/4 and 1/2. The first wins 3/4 on average, the others (1/4 + 1/2) / 2."""
    found = selected([0.0, math.log(3), 0.0], [0] * 3)
    assert found.pairs == [(1, 2)]
    assert found.columns["chosen_prob"].tolist() == pytest.approx([0.75])
    assert found.columns["rejected_prob"].tolist() == pytest.approx([0.375])


def test_equal_answers_have_even_chances_and_a_lone_one_makes_no_pair():
    found = selected([1.0, 1.0, 5.0], [0, 0, 1])
    assert found.pairs == [(0, 1)]
    assert found.columns["chosen_prob"].tolist() == [0.5]


def test_loss_by_hand():
    """eta 4. Targets 4 (0.75 - 0.5) = 1 and -1; log-ratios 2 and 0: (1 + 1) / 2. Second: 1 and -1, on target."""
    columns = {"chosen_prob": [0.75, 0.75], "rejected_prob": [0.25, 0.25]}
    loss, _ = loss_of([-1.0, -1.0], [-3.0, -3.0], columns, ([-3.0, -2.0], [-3.0, -2.0]), eta=4.0)
    assert loss.tolist() == pytest.approx([1, 0])


def test_goldens():
    (result,) = evaluate(GOLDENS, "sppo", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "grad_seq_logps"]

"""Statistical rejection sampling optimisation against numbers worked by hand and the shared golden values."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain import Ask
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
        batch=Batch(2, {"decided": torch.ones(2, dtype=D), "reward_gap": torch.ones(2, dtype=D)} | columns),
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


def test_good_answers_are_accepted_first():
    """At a temperature of 0.1 rewards 3 and 2 come before 0 and -1: an acceptance of e^-20 does not happen here."""
    found = selected([0.0, 3.0, -1.0, 2.0], [0] * 4, keep=2, temperature_of_rewards=0.1)
    assert found.pairs == [(1, 3)]
    assert found.columns["reward_gap"].tolist() == [1]


def test_acceptance_follows_its_probability():
    """Rewards 1 and 0 at temperature 1 with room for all: 1 is accepted at once, 0 in the same sweep with
    probability 1/e. Of three candidates (1, 0, 0) two are kept: the second pair partner is 0 in any case."""
    config, state, first = METHOD.config({"temperature_of_rewards": 1.0, "keep": 2}), {}, 0
    rewards = [0.0, 1.0, 0.0]
    for _ in range(600):
        found = METHOD.select(config=config, state=state, **step_of(rewards, [0] * 3))
        first += found.pairs[0] == (1, 0)
    # row 0 comes first in the sweep (1/e); else row 2 in the same sweep (1/e); else the next sweep accepts row 0
    assert first / 600 == pytest.approx(1 - (1 - 1 / math.e) / math.e, abs=0.06)


def test_draws_repeat_after_a_resume():
    state = {}
    selected([0.0, 0.5, 1.0, 0.2], [0] * 4, state=state)
    saved = dict(state)
    again = selected([0.0, 0.5, 1.0, 0.2], [0] * 4, state=state).pairs
    assert selected([0.0, 0.5, 1.0, 0.2], [0] * 4, state=saved).pairs == again


def test_loss_by_hand():
    """gamma 0.5. Margins 0.5 (2 + 1) = 1.5, beyond the hinge, and 0."""
    loss, _ = loss_of([-1.0, -2.0], [-4.0, -1.0], reference=([-3.0, -2.0], [-3.0, -1.0]), gamma=0.5)
    assert loss.tolist() == [0, 1]
    loss, _ = loss_of([-1.0, -2.0], [-4.0, -1.0], reference=([-3.0, -2.0], [-3.0, -1.0]), gamma=0.5, shape="sigmoid")
    assert loss.tolist() == pytest.approx([math.log(1 + math.exp(-1.5)), math.log(2)])


def test_the_reference_gives_the_candidates():
    plan = METHOD.plan_rollouts(prompts=[{}], group_size=4, config=METHOD.config({}), state={}, random=None)
    assert plan == [[Ask(4, source="reference")]]


@pytest.mark.skipif(not GOLDENS.exists(), reason="the shared golden values are not here")
def test_goldens():
    (result,) = evaluate(GOLDENS, "rso", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "grad_seq_logps"]

"""DCPO against numbers worked by hand and the golden values."""

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


def of_prompt(rewards, state, prompt="one"):
    return advantages(rewards, [0] * len(rewards), state=state, prompts=[prompt] * len(rewards))[0].tolist()


def test_a_new_prompt_is_standardised_by_its_group():
    assert of_prompt([1, 0, 1], {}) == pytest.approx([0.577350, -1.154701, 0.577350], abs=1e-6)
    assert of_prompt([0.1, 0.1, 0.1], {}) == [0, 0, 0]


def test_a_prompt_is_remembered():
    """First 1, 0: mean 1/2, variance 1/2. Then 1, 1, alone worth nothing: of both, mean 3/4 and variance (1/2 + 1/2 *
    1/4) / 2 = 5/16, so 1 lies 0.25 / 0.559017 = 0.447214 above, and half of that is the nearer one either way."""
    state = {}
    of_prompt([1, 0], state)
    assert of_prompt([1, 1], state) == pytest.approx([0.223607, 0.223607], abs=1e-6)
    assert state["history"]["one"] == {"steps": 2, "mean": 0.75, "std": pytest.approx(0.559017, abs=1e-6)}
    assert of_prompt([1, 1], state, [{"role": "user", "content": "two"}]) == [0, 0]


def test_bounds_by_hand():
    """At p = 1: low (1 + sqrt 0.36) / 2 = 0.8, high (1 + sqrt 1.8) / 2 = 1.170820. At p = 0.1: low 0.5 and high 2."""
    old, far = matrix([0.0, math.log(0.1)], [0.0, 0.0]), math.log(20)
    count = torch.full((2,), 1.0, dtype=D)
    everything = torch.ones(2, 2, dtype=torch.bool)
    up, _ = loss_of(old + far, torch.ones(2, dtype=D), everything, old, completions=count)
    down, _ = loss_of(old - far, -torch.ones(2, dtype=D), everything, old, completions=count)
    assert up.tolist() == pytest.approx([-(1.170820 + 2) / 2, -1.170820], abs=1e-6)
    assert down.tolist() == pytest.approx([(0.8 + 0.5) / 2, 0.8])
    bad, _ = loss_of(old + far, -torch.ones(2, dtype=D), everything, old, completions=2 * count)
    assert bad.tolist() == pytest.approx([6, 6])  # three advantages each, times two completions


def test_goldens():
    (result,) = evaluate(GOLDENS, "dcpo", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]

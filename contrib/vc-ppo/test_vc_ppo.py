"""Value-calibrated PPO against numbers worked by hand and the shared golden values."""

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


def step_of(rewards, values, lengths, group=None):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    values = torch.tensor(values, dtype=D) * mask
    rollouts = SimpleNamespace(
        mask=mask, lengths=mask.sum(1), group=torch.zeros(len(lengths)), old=lambda name: {"values": values}[name]
    )
    return {"rewards": torch.tensor(rewards, dtype=D), "rollouts": rollouts}


def loss_of(new, columns, statistics=None, mask=None, **options):
    mask = torch.ones_like(new, dtype=torch.bool) if mask is None else mask
    found = {"entropy": torch.ones_like(new)} | (statistics or {})
    return METHOD.loss(
        batch=Batch(len(new), columns),
        policy=Views(completion=View(new, mask, **found)),
        reference=None,
        config=METHOD.config(options),
        step=Step(0, 1),
    )


def worked_out(*about, state=None, **options):
    state = {} if state is None else state
    return METHOD.advantages(config=METHOD.config(options), state=state, **step_of(*about))


def test_values_learn_whole_returns_whatever_the_actor_s_decay():
    found = worked_out([1.0, 0.5], [[0.2, 0.6], [0.4, 0.0]], [2, 1], lambda_actor=0.0)
    assert found["returns"].tolist() == pytest.approx([pytest.approx([1, 1]), pytest.approx([0.5, 0])])


def test_decayed_advantages_by_hand():
    """Surprises 0.6 - 0.2 = 0.4 and 1 - 0.6 = 0.4; with a decay of 1/2: 0.6 and 0.4; a lone token: 0.1. Whitened: mean
    11/30, deviation sqrt(0.19 / 3)."""
    found = worked_out([1.0, 0.5], [[0.2, 0.6], [0.4, 0.0]], [2, 1], lambda_actor=0.5)["advantages"]
    mean, deviation = 11 / 30, math.sqrt((0.6**2 + 0.4**2 + 0.1**2 - 3 * (11 / 30) ** 2) / 2)
    expected = [(value - mean) / deviation for value in (0.6, 0.4, 0.1)]
    assert found.flatten().tolist() == pytest.approx([*expected, 0], abs=1e-6)


def test_the_values_learn_first():
    state, about = {}, ([1.0, 0.5], [[0.2, 0.6], [0.4, 0.0]], [2, 1])
    seen = [worked_out(*about, state=state, value_pretraining=2)["pretraining"][0].item() for _ in range(4)]
    assert seen == [1, 1, 0, 0]


def test_while_they_do_the_policy_waits():
    new = torch.tensor([[-1.0, -2.0]], dtype=D)
    for waiting, expected in ((1.0, [0, 0]), (0.0, [-1, 2])):
        columns = {
            "advantages": torch.tensor([[1.0, -2.0]], dtype=D), "old_logps": new,
            "returns": torch.tensor([[1.0, 0.0]], dtype=D),
            "old_values": torch.tensor([[0.5, 0.9]], dtype=D), "pretraining": torch.tensor([waiting]),
            "explained_variance": torch.ones(1),
        }  # fmt: skip
        terms, _ = loss_of(new, columns, {"values": torch.tensor([[0.5, 0.5]], dtype=D)}, value_weight=1.0)
        assert terms["policy_loss"].values[0].tolist() == expected
        assert terms["value_loss"].values[0].tolist() == pytest.approx([0.125, 0.245])  # 0.9 - 0.2 is held


@pytest.mark.skipif(not GOLDENS.exists(), reason="the shared golden values are not here")
def test_goldens():
    result, *others = evaluate(GOLDENS, "vc-ppo", [str(HERE)])
    assert {one.status for one in others} == {"equal"}
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]

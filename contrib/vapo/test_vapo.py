"""VAPO against numbers worked by hand and the shared golden values."""

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


def test_the_decay_grows_with_the_length():
    """Factor 1/2: lengths 1 and 2 have 0, length 4 has 1 - 1/2."""
    found = worked_out([1.0] * 3, [[0.0] * 4] * 3, [1, 2, 4], length_factor=0.5)
    assert found["decay"].tolist() == [0, 0, 0.5]
    assert found["advantages"][2].tolist() == pytest.approx([0.125, 0.25, 0.5, 1])
    assert found["returns"][2].tolist() == [1, 1, 1, 1]


def test_right_answers_are_imitated():
    found = worked_out([1.0, 0.0], [[0.0, 0.0]] * 2, [2, 1])
    assert found["right"].tolist() == [[True, True], [False, False]]
    assert found["right"].dtype == torch.bool


def test_terms_by_hand():
    new = torch.tensor([[-1.0, -2.0]], dtype=D)
    right = torch.tensor([[True, False]])
    columns = {
        "advantages": torch.tensor([[1.0, -2.0]], dtype=D), "old_logps": new, "right": right,
        "returns": torch.tensor([[1.0, 0.0]], dtype=D),
        "old_values": torch.tensor([[0.5, 0.9]], dtype=D), "pretraining": torch.zeros(1),
        "explained_variance": torch.ones(1), "decay": torch.ones(1),
    }  # fmt: skip
    values = {"values": torch.tensor([[0.5, 0.5]], dtype=D)}
    terms, _ = loss_of(new, columns, values, value_weight=1.0, imitation_weight=0.5)
    assert terms["policy_loss"].values[0].tolist() == [-1, 2]
    assert terms["value_loss"].values[0].tolist() == pytest.approx([0.125, 0.245])  # 0.9 - 0.2 is held
    assert terms["imitation"].mask is right
    assert terms["imitation"].values[right].tolist() == [0.5]
    terms, _ = loss_of(new, columns | {"pretraining": torch.ones(1)}, values)
    assert terms["policy_loss"].values.abs().max() == 0


def test_the_values_learn_first():
    state, about = {}, ([1.0, 0.5], [[0.2, 0.6], [0.4, 0.0]], [2, 1])
    seen = [worked_out(*about, state=state, value_pretraining=1)["pretraining"][0].item() for _ in range(3)]
    assert seen == [1, 0, 0]


@pytest.mark.skipif(not GOLDENS.exists(), reason="the shared golden values are not here")
def test_goldens():
    result, *others = evaluate(GOLDENS, "vapo", [str(HERE)])
    assert {one.status for one in others} == {"equal"}
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]

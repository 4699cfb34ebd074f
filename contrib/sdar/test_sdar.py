"""SDAR against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
import torch
from posttrain.methods import load
from posttrain.views import Batch, Step, View, Views
from posttrain_testkit.goldens.compare import evaluate

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "online.json"
METHOD = load(str(HERE))
D = torch.float64


def loss_of(new, columns, reference=None, step=None, **options):
    mask = torch.ones_like(new, dtype=torch.bool)
    view = View(new, mask, entropy=torch.ones_like(new))
    return METHOD.loss(
        batch=Batch(len(new), columns),
        policy=Views(completion=view),
        reference=None if reference is None else Views(completion=View(reference, mask)),
        config=METHOD.config(options),
        step=Step(0, 1) if step is None else step,
    )


NEW = torch.tensor([[-1.0, -2.0, -3.0]], dtype=D)
COLUMNS = {
    "advantages": torch.tensor([1.0], dtype=D),
    "old_logps": NEW,
    "teacher_logps": NEW + torch.tensor([[0.0, math.log(3) / 5, -20.0]], dtype=D),
}


def test_gate_by_hand():
    """sigmoid(0) = 1/2, sigmoid(ln 3) = 3/4, and shut where the informed model thinks little of the token."""
    terms, metrics = loss_of(NEW, COLUMNS, coef=1.0)
    assert metrics["gate"].values[0].tolist() == pytest.approx([0.5, 0.75, 0.0], abs=1e-9)
    assert terms["distillation"].values[0].tolist() == pytest.approx([0, 0.75 * math.log(3) / 5, 0], abs=1e-9)


def test_gradient_passes_through_the_gap_alone():
    new = NEW.clone().requires_grad_()
    loss_of(new, COLUMNS, coef=2.0)[0]["distillation"].values.sum().backward()
    assert new.grad[0].tolist() == pytest.approx([-1, -1.5, 0], abs=1e-9)


def test_the_policy_term_is_that_of_grpo():
    terms, metrics = loss_of(NEW, COLUMNS)
    assert terms["policy"].values[0].tolist() == [-1, -1, -1]
    assert metrics["advantage_size"].tolist() == [1]


def test_goldens():
    results = evaluate(GOLDENS, "sdar", [str(HERE)])
    assert {one.status for one in results} == {"equal"}, [one.line() for one in results]
    assert [one.quantity for one in results[0].comparisons] == ["loss", "advantages", "grad_logp_new"]

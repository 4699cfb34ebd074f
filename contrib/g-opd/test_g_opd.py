"""Generalised on-policy distillation against numbers worked by hand and the golden values."""

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


NEW = torch.tensor([[-1.0, -2.0]], dtype=D)
REFERENCE = torch.tensor([[-1.5, -2.5]], dtype=D)
COLUMNS = {"old_logps": NEW, "teacher_logps": torch.tensor([[-0.5, -3.0]], dtype=D)}


def advantages(**options):
    return loss_of(NEW, COLUMNS, REFERENCE, **options)[1]["advantage"].values[0].tolist()


def test_by_hand():
    """Gains 1 and -0.5 of the teacher, 0.5 and 0.5 of the student: 2 * 1 - 0.5, 2 * -0.5 - 0.5."""
    assert advantages(extrapolation=2.0) == pytest.approx([1.5, -1.5])


def test_at_one_the_reference_drops_out():
    """q - l: 0.5 and -1."""
    assert advantages(extrapolation=1.0) == pytest.approx([0.5, -1])


def test_gradient_is_a_policy_gradient():
    new = NEW.clone().requires_grad_()
    loss_of(new, COLUMNS, REFERENCE, extrapolation=2.0)[0].values.sum().backward()
    assert new.grad[0].tolist() == pytest.approx([-1.5, 1.5])


def test_metrics_by_hand():
    _, metrics = loss_of(NEW, COLUMNS, REFERENCE)
    assert metrics["reverse_kl"].values[0].tolist() == [-0.5, 1]
    assert metrics["kl"].values[0].tolist() == [0.5, 0.5]


def test_goldens():
    results = evaluate(GOLDENS, "g-opd", [str(HERE)])
    assert {one.status for one in results} == {"equal"}, [one.line() for one in results]
    assert [one.quantity for one in results[0].comparisons] == ["loss", "advantages", "grad_logp_new"]

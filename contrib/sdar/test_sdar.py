import math

import pytest
from posttrain_testkit.by_hand import tensor

NEW = tensor([-1.0, -2.0, -3.0])
COLUMNS = {
    "advantages": tensor(1.0),
    "old_logps": NEW,
    "teacher_logps": NEW + tensor([0.0, math.log(3) / 5, -20.0]),
}


def test_gate_by_hand(call_loss):
    """sigmoid(0) = 1/2, sigmoid(ln 3) = 3/4, and shut where the informed model thinks little of the token."""
    terms, metrics = call_loss(NEW, columns=COLUMNS, coef=1.0)
    assert metrics["gate"].values[0].tolist() == pytest.approx([0.5, 0.75, 0.0], abs=1e-9)
    assert terms["distillation"].values[0].tolist() == pytest.approx([0, 0.75 * math.log(3) / 5, 0], abs=1e-9)


def test_gradient_passes_through_the_gap_alone(call_loss):
    new = NEW.clone().requires_grad_()
    call_loss(new, columns=COLUMNS, coef=2.0)[0]["distillation"].values.sum().backward()
    assert new.grad[0].tolist() == pytest.approx([-1, -1.5, 0], abs=1e-9)


def test_the_policy_term_is_that_of_grpo(call_loss):
    terms, metrics = call_loss(NEW, columns=COLUMNS)
    assert terms["policy"].values[0].tolist() == [-1, -1, -1]
    assert metrics["advantage_size"].tolist() == [1]

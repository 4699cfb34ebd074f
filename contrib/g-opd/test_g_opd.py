from functools import partial

import pytest
from posttrain_testkit.by_hand import call_loss, method_beside, tensor

METHOD = method_beside(__file__)
loss_of = partial(call_loss, METHOD)


NEW = tensor([-1.0, -2.0])
REFERENCE = tensor([-1.5, -2.5])
COLUMNS = {"old_logps": NEW, "teacher_logps": tensor([-0.5, -3.0])}


def advantages(**options):
    return loss_of(NEW, columns=COLUMNS, reference=REFERENCE, **options)[1]["advantage"].values[0].tolist()


def test_by_hand():
    """Gains 1 and -0.5 of the teacher, 0.5 and 0.5 of the student: 2 * 1 - 0.5, 2 * -0.5 - 0.5."""
    assert advantages(extrapolation=2.0) == pytest.approx([1.5, -1.5])


def test_at_one_the_reference_drops_out():
    """q - l: 0.5 and -1."""
    assert advantages(extrapolation=1.0) == pytest.approx([0.5, -1])


def test_gradient_is_a_policy_gradient():
    new = NEW.clone().requires_grad_()
    loss_of(new, columns=COLUMNS, reference=REFERENCE, extrapolation=2.0)[0].values.sum().backward()
    assert new.grad[0].tolist() == pytest.approx([-1.5, 1.5])


def test_metrics_by_hand():
    _, metrics = loss_of(NEW, columns=COLUMNS, reference=REFERENCE)
    assert metrics["reverse_kl"].values[0].tolist() == [-0.5, 1]
    assert metrics["kl"].values[0].tolist() == [0.5, 0.5]

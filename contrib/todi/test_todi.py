import math

import pytest
import torch
from posttrain_testkit.by_hand import method_beside, tensor

METHOD = method_beside(__file__)
#: Teacher (3/4, 1/4), student (1/4, 3/4), as logits; the constants must not matter.
TEACHER = tensor([0.75, 0.25]).log() + 2.0
STUDENT = tensor([0.25, 0.75]).log() - 1.0


def statistics(student, teacher, labels=(0,), **options):
    labels = torch.tensor(labels)
    return METHOD.token_statistics(logits=student, labels=labels, teacher_logits=teacher, config=METHOD.config(options))


def test_by_hand():
    """a = p / (p + s) is 3/4 and 1/4. First entry: 3/4 3/4 ln 3 - 1/4 1/4 ln 3 = ln 3 / 2; the second is
    -1/4 1/4 ln 3 + 3/4 3/4 ln 3, the same: ln 3 together. a under the student: 3/4 1/4 + 1/4 3/4."""
    found = statistics(STUDENT, TEACHER)
    assert found["divergence"].item() == pytest.approx(math.log(3))
    assert found["forward_share"].item() == pytest.approx(0.375)


def test_gradient_holds_the_mixture_constant():
    """Weights a of the logits' own softmax, written out: the gradient by log s, then through the softmax."""
    logits = torch.tensor([[0.3, -0.2, 0.9]], dtype=torch.float64, requires_grad=True)
    teacher = tensor([0.5, 1.0, -1.0])
    statistics(logits, teacher)["divergence"].sum().backward()
    p, s = teacher.softmax(-1), logits.detach().softmax(-1)
    a = p / (p + s)
    by_log = -a * p + (1 - a) * s * ((s / p).log() + 1)  # (1, V)
    assert torch.allclose(logits.grad, by_log - s * by_log.sum())


def test_equal_models_teach_nothing():
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(1)).requires_grad_()
    same = statistics(logits, logits.detach())["divergence"]
    same.sum().backward()
    assert same.abs().max() < 1e-6
    assert logits.grad.abs().max() < 1e-6

import math

import pytest
import torch
from posttrain import SampleRequest
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import call_loss, method_beside, tensor

METHOD = method_beside(__file__)

#: Teacher (3/4, 1/4), student (1/4, 3/4), as logits; the constants must not matter.
TEACHER = tensor([0.75, 0.25]).log() + 2.0
STUDENT = tensor([0.25, 0.75]).log() - 1.0


def statistics(student, teacher, labels=None, **options):
    labels = torch.zeros(len(student), dtype=torch.long) if labels is None else labels
    config = METHOD.config(options)
    return METHOD.token_statistics(logits=student, labels=labels, teacher_logits=teacher, config=config)


def loss_of(new, columns, statistics=None, mask=None, **options):
    mask = torch.ones_like(new, dtype=torch.bool) if mask is None else mask
    found = {"entropy": torch.ones_like(new)} | (statistics or {})
    return call_loss(METHOD, Views(completion=View(new, mask, **found)), columns=columns, **options)


def test_divergences_by_hand():
    """p = (9/10, 1/10), s = (1/2, 1/2). SKL at 1/4: mixture (0.6, 0.4); SRKL at 1/4: mixture (0.8, 0.2)."""
    p, s = tensor([0.9, 0.1]).log(), torch.zeros(1, 2, dtype=torch.float64)
    found = statistics(s, p, alpha_1=0.25, alpha_2=0.25)
    assert found["skl"].item() == pytest.approx(0.9 * math.log(1.5) + 0.1 * math.log(0.25))
    assert found["srkl"].item() == pytest.approx(0.5 * math.log(0.625) + 0.5 * math.log(2.5))


def test_each_answer_has_its_own_divergence():
    """beta 1.5, means 0.3 (of 0.2 and 0.4) and 0.1: 2 * 0.5 * 0.3 of the teacher's, 2 * 1.5 * 0.1 of the student's."""
    new, mask = torch.zeros(2, 2, dtype=torch.float64), torch.tensor([[True, True], [True, False]])
    numbers = {
        "skl": tensor([0.2, 0.4], [9.0, 9.0]),
        "srkl": tensor([9.0, 9.0], [0.1, 9.0]),
    }
    loss, metrics = loss_of(new, {"source": ["teacher", "policy"]}, numbers, mask, beta=1.5)
    assert loss.tolist() == pytest.approx([0.3, 0.3])
    assert metrics["skl"].isnan().tolist() == [False, True]


def test_the_mixture_holds_the_student_constant():
    """By hand: d SRKL / d log s = s (log s - log m + 1), through the softmax."""
    logits = torch.tensor([[0.3, -0.2, 0.9]], dtype=torch.float64, requires_grad=True)
    teacher = tensor([0.5, 1.0, -1.0])
    statistics(logits, teacher, alpha_2=0.1)["srkl"].sum().backward()
    p, s = teacher.softmax(-1), logits.detach().softmax(-1)
    by_log = s * ((s / (0.9 * p + 0.1 * s)).log() + 1)
    assert torch.allclose(logits.grad, by_log - s * by_log.sum())


def test_both_answer_each_prompt():
    plan = METHOD.plan_rollouts(prompts=[{}], group_size=1, config=METHOD.config({}), state={}, random=None)
    assert plan == [[SampleRequest(1), SampleRequest(1, source="teacher")]]

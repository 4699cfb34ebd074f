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


def test_head_and_tail_by_hand():
    """Teacher (1/4, 3/4) sorted: 1/4 is the tail at 0.5. Both gaps are 1/2: the weights are equal, as are both
    divergences here, ln 3 / 2."""
    found = statistics(STUDENT, TEACHER)
    assert found["head_weight"].item() == pytest.approx(0.5)
    assert found["divergence"].item() == pytest.approx(math.log(3) / 2)


def test_all_head_is_the_forward_divergence_and_all_tail_the_reverse():
    """Teacher (9/10, 1/10), student (1/2, 1/2): KL(p || s) = 0.368064, KL(s || p) = 0.510826. With a cut at 0 there is
    no tail; at 0.05 neither, as 1/10 is above it; at 1 everything is."""
    p, s = tensor([0.9, 0.1]).log(), torch.zeros(1, 2, dtype=torch.float64)
    assert statistics(s, p, tail=0.05)["divergence"].item() == pytest.approx(0.368064, abs=1e-6)
    assert statistics(s, p, tail=0.0)["head_weight"].item() == pytest.approx(1)


def test_unequal_gaps():
    """Teacher (0.6, 0.3, 0.1), student (0.2, 0.3, 0.5), tail at 0.5: 0.1 and 0.3 are the tail (0.4 together), its gap
    is 0.4; the head's is 0.4 too. With the student (0.5, 0.1, 0.4): head 0.1, tail 0.2 + 0.3: weight 1/6."""
    teacher = tensor([0.6, 0.3, 0.1]).log()
    for student, weight in (((0.2, 0.3, 0.5), 0.5), ((0.5, 0.1, 0.4), 1 / 6)):
        found = statistics(tensor(student).log(), teacher)
        assert found["head_weight"].item() == pytest.approx(weight)


def test_equal_models_teach_nothing():
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(1)).requires_grad_()
    same = statistics(logits, logits.detach())["divergence"]
    same.sum().backward()
    assert same.abs().max() < 1e-6
    assert logits.grad.abs().max() < 1e-6
